//! `encode --level token|word` to every kind of file.

use super::*;
use llm2vec::format::hf::Checkpoint;
use llm2vec::format::npy::Data;

const LINES: &str = "{\"tokens\": [\"A\", \"heavy\", \"rain\"], \"id\": \"x\"}\n{\"text\": \"  naïve snow \"}\n{\"text\": \"\"}\n\
    {\"tokens\": [\"antidisestablishmentarianism\", \"is\", \"a\", \"word\", \"of\", \"many\", \"tokens\"]}\n";

fn int64s(path: &Path) -> Vec<i64> {
    match npy::read(path).unwrap().data {
        Data::I64(values) => values,
        other => panic!("{other:?}"),
    }
}

/// All in it, however deep the lists.
fn numbers(value: &Value) -> Vec<f32> {
    match value {
        Value::Array(list) => list.iter().flat_map(numbers).collect(),
        other => other.as_f64().map(|v| v as f32).into_iter().collect(),
    }
}

#[test]
fn all_kinds_of_files_hold_the_same_blocks() {
    let (tiny, dir) = (Tiny::new(), folder());
    let input = dir.path().join("in.jsonl");
    fs::write(&input, LINES).unwrap();
    for (level, dtype) in [("word", "f32"), ("token", "f32"), ("word", "i8"), ("word", "f16")] {
        let flags =
            ["--level", level, "--empty", "zero", "--doc-max-length", "12", "--output-dtype", dtype, "-q"];
        let base = [&["encode", "-m", tiny.path(), "-i", str(&input)], &flags[..]].concat();
        let [npy_file, st, jsonl] = ["v.npy", "v.safetensors", "v.jsonl"].map(|n| dir.path().join(n));
        for file in [&npy_file, &st, &jsonl] {
            good(llm2vec(&[&base[..], &["-o", str(file)]].concat()));
        }
        let lines = fs::read_to_string(&jsonl).unwrap();
        assert_eq!(lines, good(llm2vec(&[&base[..], &["-o", "-"]].concat())));
        let peer = [&["encode", "-m", tiny.path(), "-o", "-", "-i", "-"], &flags[..]].concat();
        assert_eq!(lines, passed(fed(llm2vec(&peer), LINES.as_bytes())));
        let lines: Vec<Value> = lines.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        assert_eq!((lines.len(), &lines[0]["id"], lines[1].get("id")), (4, &json!("x"), None));

        // The index says of every row what its line says.
        let side = |name: &str| npy_file.with_extension(format!("{name}.npy"));
        let (starts, offsets) = (int64s(&side("starts")), int64s(&side("offsets")));
        let Data::I8(cut) = npy::read(&side("cut")).unwrap().data else { panic!() };
        let vectors = rows(&npy_file);
        assert_eq!((starts[0], starts.len(), vectors.len()), (0, 5, 32 * starts[4] as usize));
        for (i, line) in lines.iter().enumerate() {
            let (from, to) = (starts[i] as usize, starts[i + 1] as usize);
            let want = numbers(&line["vectors"]);
            assert_eq!(vectors[32 * from..32 * to], want, "{level} {dtype} text {i}");
            let pairs: Vec<&[i64]> = offsets[2 * from..2 * to].chunks(2).collect();
            assert_eq!(line["offsets"], json!(pairs));
            assert_eq!(line.get("cut").is_some(), cut[i] == 1);
        }
        assert_eq!(cut, [0, 0, 0, 1]);
        if level == "word" {
            assert_eq!(lines[0]["offsets"], json!([[0, 1], [2, 7], [8, 12]]));
            assert_eq!(lines[1]["offsets"], json!([[2, 8], [9, 13]]));
            assert!(
                (1..7).contains(&lines[3]["offsets"].as_array().unwrap().len()),
                "{}",
                lines[3]["offsets"]
            );
        }

        // Tensor by tensor the same bytes.
        let file = Checkpoint::open_file(&st).unwrap();
        let mut pairs = vec![("vectors", npy_file.clone())];
        pairs.extend(["starts", "offsets", "cut"].map(|name| (name, side(name))));
        if dtype == "i8" {
            pairs.push(("scale", side("scale")));
            let scales = lines.iter().flat_map(|l| numbers(&l["scale"])).collect::<Vec<_>>();
            assert_eq!(rows(&side("scale")), scales);
        }
        for (name, path) in pairs {
            let tensor = file.get(name).unwrap();
            assert_eq!(tensor.shape, npy::read(&path).unwrap().shape, "{name}");
            assert!(tensor.data == &fs::read(&path).unwrap()[npy::HEADER_BYTES..], "{name}");
        }
        for file in names(dir.path()).into_iter().filter(|name| name.starts_with("v.")) {
            fs::remove_file(dir.path().join(file)).unwrap();
        }
        assert_eq!(names(dir.path()), ["in.jsonl"]);
    }
}

/// A text without a row is an error that names its line, and nothing is left.
#[test]
fn errors_name_the_line() {
    let (tiny, dir) = (Tiny::new(), folder());
    let (input, out) = (dir.path().join("in.jsonl"), dir.path().join("v.npy"));
    fs::write(&input, LINES).unwrap();
    let base = ["encode", "-m", tiny.path(), "-i", str(&input), "--level", "word"];
    let run = |more: &[&str]| llm2vec(&[&base[..], more].concat()).output().unwrap();
    failed(run(&["-o", str(&out)]), 1, &["in.jsonl: line 3: an empty text has no token", "--empty zero"]);
    assert_eq!(names(dir.path()), ["in.jsonl"]);
    failed(run(&["--nearest", "2"]), 2, &["--nearest compares texts"]);
    failed(
        run(&["-o", str(&out), "--layer", "3"]),
        2,
        &["--layer 3: the model has 0 (the embedding) to 2, or -1 to -3"],
    );
}
