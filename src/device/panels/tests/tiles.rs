//! The tile registers of AMX where the CPU has none: its instructions fault there, and a handler does what the manual says.
//!
//! Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2, LDTILECFG to TILEZERO and TDPBF16PS.

use super::super::amx::{Tiles, available};
use half::bf16;
use std::cell::RefCell;
use std::sync::Once;

/// 16 rows of 64 bytes.
type Register = [[u32; 16]; 16];

/// What a thread has of them.
struct State {
    configured: bool,
    registers: [Register; 8],
    products: usize,
}

thread_local! {
    static STATE: RefCell<State> =
        const { RefCell::new(State { configured: false, registers: [[[0; 16]; 16]; 8], products: 0 }) };
}

/// Tiles of the CPU, or else of the handler.
pub fn load() -> Tiles {
    static HANDLER: Once = Once::new();
    if !available() {
        HANDLER.call_once(|| {
            // SAFETY: all zeros is a valid action; the handler has the type that SA_SIGINFO asks for.
            let rc = unsafe {
                let mut action: libc::sigaction = std::mem::zeroed();
                action.sa_sigaction = handle as *const () as usize;
                action.sa_flags = libc::SA_SIGINFO;
                libc::sigaction(libc::SIGILL, &action, std::ptr::null_mut())
            };
            assert_eq!(rc, 0, "{}", std::io::Error::last_os_error());
        });
    }
    // SAFETY: the instructions are there, or are the handler's.
    unsafe { Tiles::configured() }
}

/// The products of two tiles that the handler has taken on this thread.
pub fn products() -> usize {
    STATE.with_borrow(|state| state.products)
}

/// Does what the instruction says that faulted, and goes on behind it.
///
/// What is not one of AMX's, or what the manual forbids, ends the process: there is nothing to go back to.
extern "C" fn handle(_: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel gives the context of the instruction that faulted, whose bytes can be read, and whose memory is what
    // the program itself would have read or written.
    let done = unsafe {
        let gregs = &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs;
        let at = gregs[libc::REG_RIP as usize] as *const u8;
        let length = STATE.with_borrow_mut(|state| state.execute(at, gregs));
        length.map(|length| gregs[libc::REG_RIP as usize] += length as i64)
    };
    if done.is_none() {
        // SAFETY: ends the process.
        unsafe { libc::abort() };
    }
}

/// Registers as instructions number them.
const NUMBERED: [libc::c_int; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];

impl State {
    /// Gives the bytes that the instruction takes.
    ///
    /// # Safety
    /// - an instruction is at `at`, and what it reads and writes is there
    unsafe fn execute(&mut self, at: *const u8, gregs: &[i64]) -> Option<usize> {
        // SAFETY: by the caller; every instruction here has at least five bytes.
        let [vex, a, b, opcode, modrm] = unsafe { at.cast::<[u8; 5]>().read_unaligned() };
        // Three bytes of VEX: opcode map 0F38, W of 0, 128 bits.
        if vex != 0xc4 || a & 0x1f != 2 || b & 0x84 != 0 {
            return None;
        }
        let (prefix, third) = (b & 3, usize::from(!b >> 3 & 15));
        let (mode, first, second) = (modrm >> 6, usize::from(modrm >> 3 & 7), usize::from(modrm & 7));
        // SAFETY: by the caller.
        unsafe {
            match (opcode, prefix, mode) {
                (0x49, 0, 3) => self.configured = false,
                (0x49, 3, 3) => *self.register(first)? = [[0; 16]; 16],
                (0x49, 0, _) => {
                    let (from, length) = address(at, gregs, a, modrm)?;
                    self.configure(&from.base.cast::<[u8; 64]>().read_unaligned())?;
                    return Some(length);
                }
                (0x4b, 2 | 3, 0..3) => {
                    let (place, length) = address(at, gregs, a, modrm)?;
                    let rows = self.register(first)?;
                    for (r, row) in rows.iter_mut().enumerate() {
                        let line = place.base.offset(place.stride * r as isize).cast::<[u32; 16]>();
                        match prefix {
                            3 => *row = line.read_unaligned(),
                            _ => line.write_unaligned(*row),
                        }
                    }
                    return Some(length);
                }
                (0x5c, 2, 3) if first != second && first != third && second != third => {
                    let (x, w) = (*self.register(second)?, *self.register(third)?);
                    multiply(self.register(first)?, &x, &w);
                    self.products += 1;
                }
                _ => return None,
            }
        }
        Some(5)
    }

    /// Takes eight tiles of 16 rows of 64 bytes, the only ones that are used here.
    fn configure(&mut self, c: &[u8; 64]) -> Option<()> {
        let widths = c[16..32].as_chunks::<2>().0;
        let whole = widths.iter().all(|w| *w == [64, 0]) && c[48..56].iter().all(|rows| *rows == 16);
        let rest = c[1..16].iter().chain(&c[32..48]).chain(&c[56..]).all(|zero| *zero == 0);
        (c[0] == 1 && whole && rest).then(|| {
            self.configured = true;
            self.registers = [[[0; 16]; 16]; 8];
        })
    }

    fn register(&mut self, i: usize) -> Option<&mut Register> {
        self.configured.then(|| &mut self.registers[i])
    }
}

/// Rows so many bytes apart.
struct Place {
    base: *mut u8,
    stride: isize,
}

/// Where an instruction's memory is, and the bytes that the instruction takes.
///
/// # Safety
/// - an instruction is at `at`, with a modrm that is not of two registers
unsafe fn address(at: *const u8, gregs: &[i64], vex: u8, modrm: u8) -> Option<(Place, usize)> {
    let numbered = |low: u8, inverted: u8| gregs[NUMBERED[usize::from(low | inverted)] as usize];
    let high = |bit: u8| if vex & bit == 0 { 8 } else { 0 };
    let mut length = 5;
    let (base, index) = if modrm & 7 == 4 {
        // SAFETY: the byte that follows such a modrm.
        let sib = unsafe { *at.add(length) };
        length += 1;
        let none = sib >> 3 & 7 == 4 && high(0x40) == 0;
        let index = if none { 0 } else { numbered(sib >> 3 & 7, high(0x40)) << (sib >> 6) };
        // Without a displacement there is no base of this number.
        if sib & 7 == 5 && modrm >> 6 == 0 {
            return None;
        }
        (numbered(sib & 7, high(0x20)), index)
    } else {
        (numbered(modrm & 7, high(0x20)), 0)
    };
    // SAFETY: the bytes that such a modrm says are there.
    let displacement = unsafe {
        let from = at.add(length);
        match modrm >> 6 {
            0 if modrm & 7 == 5 => return None,
            0 => 0,
            1 => (length += 1, i64::from(*from.cast::<i8>())).1,
            _ => (length += 4, i64::from(from.cast::<i32>().read_unaligned())).1,
        }
    };
    Some((Place { base: (base + displacement) as *mut u8, stride: index as isize }, length))
}

/// Of each step of a row the products of even and of odd numbers are summed from zero, and both sums added to `y`.
fn multiply(y: &mut Register, x: &Register, w: &Register) {
    let number = |pair: u32, i: u32| bf16::from_bits((pair >> (16 * i)) as u16).to_f32();
    for (y, x) in y.iter_mut().zip(x) {
        for (c, y) in y.iter_mut().enumerate() {
            let half = |i| x.iter().zip(w).fold(0.0, |sum, (x, w)| number(*x, i) * number(w[c], i) + sum);
            *y = (f32::from_bits(*y) + (half(0) + half(1))).to_bits();
        }
    }
}
