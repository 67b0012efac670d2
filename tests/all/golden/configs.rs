//! What Transformers makes of a config.json, keys left out and all: every file of `configs.json`, made by
//! `make_configs.py`, is read to the same numbers, or refused where Transformers cannot run it either.

use super::common::{Loaded, distance, here};
use llm2vec::device::Device;
use llm2vec::format::hf::read_json;
use llm2vec::model::config::{Attention, Config};
use llm2vec::model::rope::frequencies;
use llm2vec::ops::attention::Mask;
use serde_json::Value;

fn numbers(v: &Value) -> Vec<f64> {
    v.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

/// Our reading, in the shape of the fixture's; `windows` only where the layers agree.
fn same(c: &Config, want: &Value) -> Result<(), String> {
    let size = |key: &str| want[key].as_u64().unwrap() as usize;
    let heads: Vec<f64> = [c.heads.query, c.heads.key, c.heads.width].map(|n| n as f64).into();
    let windows: Vec<Option<u64>> = want["windows"].as_array().unwrap().iter().map(Value::as_u64).collect();
    let windowed: Vec<u64> = windows.iter().flatten().copied().collect();
    let sizes = [
        ("width", c.width),
        ("layers", c.layers),
        ("feed_forward", c.feed_forward),
        ("vocab", c.vocab),
        ("max_positions", c.max_positions),
    ];
    for (key, got) in sizes {
        if got != size(key) {
            return Err(format!("{key} = {got}"));
        }
    }
    let flags = [("tied", c.tied), ("qkv_bias", c.qkv_bias), ("o_bias", c.o_bias)];
    if let Some((key, got)) = flags.iter().find(|(key, got)| want[key] != *got) {
        return Err(format!("{key} = {got}"));
    }
    let wanted = numbers(&want["frequencies"]);
    let got = frequencies(c);
    // The module's own are f32.
    let near = |(a, b): (&f64, &f64)| (a - b).abs() <= 1e-6 * b.abs();
    if got.len() != wanted.len() || !got.iter().zip(&wanted).all(near) {
        return Err(format!("frequencies {got:?}"));
    }
    if heads != numbers(&want["heads"]) || c.norm_eps != want["norm_eps"].as_f64().unwrap() {
        return Err(format!("heads {heads:?}, epsilon {}", c.norm_eps));
    }
    if c.window.map(|w| w as u64) != windowed.first().copied() || c.windowed != windowed.len() {
        return Err(format!("window {:?} in {} layers", c.window, c.windowed));
    }
    let agree = windowed.is_empty() || windowed.len() == c.layers;
    match (c.mask(Attention::Full).is_ok(), c.mask(Attention::Causal).is_ok()) {
        (true, causal) if causal == agree => Ok(()),
        masks => Err(format!("masks {masks:?}")),
    }
}

#[test]
fn every_config_is_read_as_transformers_reads_it() {
    let fixture = read_json(&here("tests/golden/configs.json")).unwrap();
    let (mut read, mut refused, mut wrong) = (0, 0, Vec::new());
    for case in fixture["configs"].as_array().unwrap() {
        let got = Config::parse(&case["config"]);
        match (&got, &case["effective"]) {
            (Err(_), Value::Null) => refused += 1,
            (Ok(_), Value::Null) => wrong.push(format!("{}: is read, Transformers cannot", case["config"])),
            (Err(e), _) => wrong.push(format!("{}: {e}", case["config"])),
            (Ok(c), want) => match same(c, want) {
                Ok(()) => read += 1,
                Err(what) => wrong.push(format!("{}: {what}, wanted {want}", case["config"])),
            },
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), read + refused + wrong.len(), wrong.join("\n"));
    assert!(read > 80 && refused > 15, "{read} read, {refused} refused");
}

/// A file with `"is_causal": false` opened by Transformers as a user does: `--attention window` gives the same states
/// with either back-end of a CPU, at distances up to the window and no further.
#[test]
fn a_window_on_both_sides_reaches_as_far_as_transformers() {
    let window = &read_json(&here("tests/golden/configs.json")).unwrap()["window"];
    let ids: Vec<i32> = numbers(&window["ids"]).iter().map(|&id| id as i32).collect();
    let mut model =
        Loaded::load(&here("tests/golden").join(window["model"].as_str().unwrap()), Device::cpu(), &[], None);
    let mask = model.config.mask(Attention::Window).unwrap();
    assert_eq!((model.config.window, mask), (Some(5), Mask::Window(6)));
    let [got, narrow] = [mask, Mask::Window(5)].map(|mask| model.hidden(&[&ids], mask).remove(0));
    for backend in ["sdpa", "eager"] {
        let want = numbers(&window[backend]);
        assert!(distance(&got, &want) < 1e-5, "{backend}: off by {:e}", distance(&got, &want));
        assert!(distance(&narrow, &want) > 1e-3, "a window of one less is not told apart");
    }
}
