//! PTX text as tokens with lines.

/// A token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Token<'a> {
    /// A name, opcode, register, directive or number.
    Word(&'a str),
    /// Between quotes.
    Text(&'a str),
    /// Anything else that stands alone.
    Sign(char),
}

/// Tokens with their lines (from 1), comments dropped; the error is (line, what).
pub fn tokens(text: &str) -> Result<Vec<(Token<'_>, u32)>, (u32, String)> {
    let bytes = text.as_bytes();
    let (mut list, mut i, mut line) = (Vec::new(), 0, 1u32);
    let word = |b: u8| b.is_ascii_alphanumeric() || b"_.$%".contains(&b);
    while i < bytes.len() {
        let from = i;
        match bytes[i] {
            b'\n' => {
                line += 1;
                i += 1;
            }
            b if b.is_ascii_whitespace() || b == 0 => i += 1,
            b'/' if bytes.get(i + 1) == Some(&b'/') => {
                i += bytes[i..].iter().position(|b| *b == b'\n').unwrap_or(bytes.len() - i);
            }
            b'/' if bytes.get(i + 1) == Some(&b'*') => {
                let end = text[i..].find("*/").ok_or((line, "a comment without end".to_string()))?;
                line += text[i..i + end].matches('\n').count() as u32;
                i += end + 2;
            }
            b'"' => {
                let end = text[i + 1..].find(['"', '\n']).filter(|e| bytes[i + 1 + e] == b'"');
                let end = end.ok_or((line, "a string without end".to_string()))?;
                list.push((Token::Text(&text[i + 1..i + 1 + end]), line));
                i += end + 2;
            }
            b if word(b) => {
                while i < bytes.len()
                    && (word(bytes[i]) || (bytes[i..].starts_with(b"::") && i + 2 < bytes.len()))
                {
                    i += if bytes[i] == b':' { 2 } else { 1 };
                }
                list.push((Token::Word(&text[from..i]), line));
            }
            b if b.is_ascii() => {
                list.push((Token::Sign(b as char), line));
                i += 1;
            }
            _ => return Err((line, "a character that is not ASCII".to_string())),
        }
    }
    Ok(list)
}

/// A number as the bits that it stands for: decimal, hexadecimal, octal, binary, `0f…` and `0d…`.
pub fn number(word: &str) -> Option<u64> {
    let radix = |digits: &str, radix| u64::from_str_radix(digits.trim_end_matches('U'), radix).ok();
    let (prefix, rest) = word.split_at_checked(2).unwrap_or((word, ""));
    match prefix {
        "0f" | "0F" if rest.len() == 8 => radix(rest, 16),
        "0d" | "0D" if rest.len() == 16 => radix(rest, 16),
        "0x" | "0X" => radix(rest, 16),
        "0b" | "0B" => radix(rest, 2),
        _ if !word.starts_with(|c: char| c.is_ascii_digit()) => None,
        _ if word.len() > 1 && word.starts_with('0') => radix(&word[1..], 8),
        // A decimal with a point is an f64.
        _ if word.contains('.') => word.parse::<f64>().ok().map(f64::to_bits),
        _ => radix(word, 10),
    }
}
