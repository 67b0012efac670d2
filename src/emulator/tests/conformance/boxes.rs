//! Boxes of tensors: every dimension, swizzle and edge against loops over coordinates, and maps that make no sense.

use super::*;

const PTX: &str = include_str!("ptx/async_sm90.ptx");
const BUGS: &str = include_str!("ptx/async_bugs_sm90.ptx");

/// Where a 16-byte chunk of a row goes: the guide's pictures, whose rows are as wide as the swizzle.
fn chunk(swizzle: Swizzle, row: usize, chunk: usize) -> usize {
    match swizzle {
        Swizzle::None => chunk,
        Swizzle::B32 => chunk ^ (row / 4 % 2),
        Swizzle::B64 => chunk ^ (row / 2 % 4),
        Swizzle::B128 => chunk ^ (row % 8),
    }
}

/// Array index and place in shared memory of every element of a box; no index where there is no array.
fn cells(map: &TensorMap, at: &[i32]) -> Vec<(Option<usize>, usize)> {
    let size = map.element.size();
    let counts: Vec<usize> =
        (0..at.len()).map(|d| map.tile[d].div_ceil(if d == 0 { 1 } else { map.steps[d] }) as usize).collect();
    let mut list = Vec::new();
    for number in 0..counts.iter().product::<usize>() {
        let (mut rest, mut byte, mut inside) = (number, 0, true);
        for d in 0..at.len() {
            let step = if d == 0 { 1 } else { map.steps[d] as i64 };
            let x = i64::from(at[d]) + (rest % counts[d]) as i64 * step;
            rest /= counts[d];
            inside &= x >= 0 && x < map.sizes[d] as i64;
            byte += x * if d == 0 { size as i64 } else { map.strides[d - 1] as i64 };
        }
        let width = counts[0] * size;
        let (row, column) = (number * size / width, number * size % width);
        let place = match map.swizzle {
            Swizzle::None => number * size,
            swizzle => row * width + chunk(swizzle, row, column / 16) * 16 + column % 16,
        };
        list.push((inside.then_some(byte as usize), place));
    }
    list
}

fn map(element: Element, sizes: &[u64], tile: &[u32], swizzle: Swizzle) -> TensorMap {
    let mut strides = vec![(sizes[0] * element.size() as u64).next_multiple_of(16)];
    sizes[1..].iter().for_each(|n| strides.push(strides.last().unwrap() * n));
    strides.pop();
    let steps = vec![1; sizes.len()];
    TensorMap { element, address: 0, sizes: sizes.to_vec(), strides, tile: tile.to_vec(), steps, swizzle }
}

fn bytes(map: &TensorMap) -> usize {
    let row = (map.sizes[0] as usize * map.element.size()).next_multiple_of(16);
    map.strides.last().map_or(row, |s| *s as usize * *map.sizes.last().unwrap() as usize)
}

fn ints(at: &[i32]) -> Vec<Arg<'static>> {
    (0..5).map(|d| Arg::Int(at.get(d).copied().unwrap_or(0))).collect()
}

/// Loads a box, stores one, and adds one; seeds 0 to 3 are late, early, and either.
fn check(map: &TensorMap, at: &[i32]) {
    let (n, size, cells) = (at.len(), map.element.size(), cells(map, at));
    let total = cells.len() * size;
    let array: Vec<u8> = (0..bytes(map)).map(|i| (i * 37 % 251 + 1) as u8).collect();
    let raw: Vec<u8> = (0..total).map(|i| (i * 29 % 241 + 3) as u8).collect();
    let (mut loaded, mut stored, mut added) = (vec![0u8; total], array.clone(), array.clone());
    for (index, place) in &cells {
        let Some(i) = *index else { continue };
        loaded[*place..place + size].copy_from_slice(&array[i..i + size]);
    }
    // What is written ends at whole chunks of 16 bytes, in the gap behind a ragged row.
    let mut whole = map.clone();
    whole.sizes[0] = whole.sizes[0].next_multiple_of(16 / size as u64);
    for (index, place) in self::cells(&whole, at) {
        let Some(i) = index else { continue };
        stored[i..i + size].copy_from_slice(&raw[place..place + size]);
        let number = |b: &[u8]| b.iter().rev().fold(0u64, |n, b| n << 8 | u64::from(*b));
        let sum = number(&array[i..i + size]).wrapping_add(number(&raw[place..place + size]));
        added[i..i + size].copy_from_slice(&sum.to_le_bytes()[..size]);
    }
    for seed in 0..4 {
        let launch = Launch { shared: total, seed, ..line(1, 32) };
        let mut args = vec![Arg::Scratch(total), Arg::Map(&array, map.clone()), Arg::Int(total as i32)];
        args.extend(ints(at));
        let (out, counters) = run(PTX, &format!("box_in_{n}"), &launch, &args).unwrap();
        assert!(out[0] == loaded, "load of {map:?} at {at:?}, seed {seed}");
        let inside = cells.iter().filter(|c| c.0.is_some()).count() * size;
        assert_eq!(counters.total.bytes, (total + inside) as u64);
        if seed == 0 {
            real::also(PTX, &format!("box_in_{n}"), &launch, &args, |out| {
                assert!(out[0] == loaded, "{map:?} at {at:?}")
            });
        }
        let puts = [("put", &stored), ("add", &added)];
        for (name, want) in
            puts.iter().filter(|p| p.0 == "put" || matches!(map.element, Element::U32 | Element::U64))
        {
            let mut args = vec![Arg::Map(&array, map.clone()), Arg::In(&raw), Arg::Int(total as i32)];
            args.extend(ints(at));
            let (out, _) = run(PTX, &format!("box_{name}_{n}"), &launch, &args).unwrap();
            assert!(out[0] == **want, "{name} of {map:?} at {at:?}, seed {seed}");
            if seed == 0 {
                let right = |out: &[Vec<u8>]| assert!(out[0] == **want, "{name} of {map:?} at {at:?}");
                real::also(PTX, &format!("box_{name}_{n}"), &launch, &args, right);
            }
        }
    }
}

#[test]
fn swizzles_and_edges() {
    let swizzles = [Swizzle::None, Swizzle::B32, Swizzle::B64, Swizzle::B128];
    for (swizzle, width) in swizzles.into_iter().zip([96, 32, 64, 128]) {
        for (element, size) in [(Element::Bf16, 2), (Element::U32, 4), (Element::U8, 1), (Element::F64, 8)] {
            let columns = width / size;
            let map = map(element, &[columns as u64 + 13, 21], &[columns as u32, 18], swizzle);
            // Columns of 16 bytes: a box begins at a multiple of as many.
            let (c, unit): (i32, i32) = (columns, 16 / size);
            for at in [
                [0, 0],
                [unit, 3],
                [2 * unit, 7],
                [-unit, -2],
                [c + 12 / unit * unit, 20],
                [c + 3 * unit, 0],
                [0, -18],
                [1 << 30, -(1 << 30)],
            ] {
                check(&map, &at);
            }
        }
    }
}

#[test]
fn one_to_five_dimensions() {
    check(&map(Element::U32, &[50], &[12], Swizzle::None), &[44]);
    check(&map(Element::U32, &[9, 7, 5], &[8, 3, 2], Swizzle::B32), &[4, -1, 4]);
    check(&map(Element::U64, &[4, 3, 3, 4], &[2, 2, 2, 3], Swizzle::None), &[2, 2, 1, 2]);
    check(&map(Element::Bf16, &[16, 3, 2, 3, 2], &[16, 2, 2, 2, 2], Swizzle::B32), &[0, 2, 0, -1, 1]);
    let stepped =
        TensorMap { steps: vec![1, 2, 3], ..map(Element::U32, &[8, 12, 12], &[8, 5, 7], Swizzle::None) };
    check(&stepped, &[0, 3, 2]);
}

/// Where a box begins within 16 bytes, loads, stores and reductions are an illegal instruction on an H200.
#[test]
fn a_box_begins_at_a_multiple_of_16_bytes() {
    for (element, size, at) in [
        (Element::Bf16, 2, [5, 3]),
        (Element::Bf16, 2, [-3, -2]),
        (Element::U8, 1, [13, 7]),
        (Element::U8, 1, [96 + 12, 20]),
        (Element::F64, 8, [1, 0]),
    ] {
        let columns = 96 / size;
        let map = map(element, &[columns as u64 + 16, 21], &[columns as u32, 18], Swizzle::None);
        let array = vec![0; bytes(&map)];
        let total = 96 * 18;
        let launch = Launch { shared: total, ..line(1, 32) };
        let raw = vec![0; total];
        for name in ["in", "put", "add"] {
            let mut args = match name {
                "in" => vec![Arg::Scratch(total), Arg::Map(&array, map.clone())],
                _ => vec![Arg::Map(&array, map.clone()), Arg::In(&raw)],
            };
            args.push(Arg::Int(total as i32));
            args.extend(ints(&at));
            let what = run(PTX, &format!("box_{name}_2"), &launch, &args).unwrap_err().to_string();
            let byte = at[0] * size;
            let words = [format!("the first coordinate, {}, is byte {byte}", at[0]), "misaligned".into()];
            assert!(words.iter().all(|word| what.contains(word.as_str())), "{name} at {at:?}: {what}");
        }
    }
}

/// A prefetch keeps the rules of the load that it is for.
#[test]
fn prefetches_keep_the_rules_of_loads() {
    let ptx = |inst: &str| {
        format!(
            ".version 9.0\n.target sm_90a\n.address_size 64\n\
             .visible .entry k(.param .u64 in, .param .align 64 .b8 map[128], .param .u32 size)\n{{\n\
             .reg .b32 %r<9>; .reg .b32 %u; .reg .b64 %d<9>;\n\
             ld.param.u64 %d0, [in];\nld.param.u32 %r0, [size];\nmov.b64 %d1, map;\ncvta.param.u64 %d1, %d1;\n\
             mov.u32 %r1, 0;\nmov.u32 %r2, 8;\nmov.u32 %r3, 5;\n{inst}\nret;\n}}\n"
        )
    };
    let map = map(Element::Bf16, &[64, 16], &[32, 8], Swizzle::None);
    let array = vec![0; bytes(&map)];
    let launch = |inst: &str, size: i32| {
        let args = [Arg::In(&array), Arg::Map(&array, map.clone()), Arg::Int(size)];
        run(&ptx(inst), "k", &line(1, 32), &args).map(|_| ()).map_err(|e| e.to_string())
    };
    let bulk = "cp.async.bulk.prefetch.L2.global [%d0], %r0;";
    let tensor = "cp.async.bulk.prefetch.tensor.2d.L2.global.tile [%d1, {%r2, %r3}];";
    launch(bulk, 2048).unwrap();
    launch(tensor, 0).unwrap();
    launch("cp.async.bulk.prefetch.tensor.2d.L2.global [%d1, {%r1, %r3}];", 0).unwrap();
    for (inst, size, words) in [
        (bulk, 24, "misaligned: a prefetch of 24 bytes"),
        (bulk, 0, "misaligned: a prefetch of 0 bytes"),
        (bulk, 2064, "out of bounds: read of 2064 bytes"),
        ("cp.async.bulk.prefetch.L2.global [%d0+8], %r0;", 16, "misaligned: a bulk copy at arg0+8"),
        (
            "cp.async.bulk.prefetch.L2.global [%d0], %u;",
            16,
            "its size is a register that nothing has written",
        ),
        (
            "cp.async.bulk.prefetch.tensor.2d.L2.global.tile [%d1, {%r3, %r3}];",
            0,
            "the first coordinate, 5, is byte 10",
        ),
        (
            "cp.async.bulk.prefetch.tensor.2d.L2.global.tile [%d1, {%r1, %u}];",
            0,
            "a coordinate is a register",
        ),
        (
            "cp.async.bulk.prefetch.tensor.3d.L2.global.tile [%d1, {%r1, %r1, %r1}];",
            0,
            "3 coordinates for a tensor map of 2",
        ),
        ("cp.async.bulk.prefetch.tensor.2d.L2.global.tile [%d0, {%r1, %r1}];", 0, "is no tensor map"),
    ] {
        let what = launch(inst, size).expect_err(inst);
        assert!(what.contains("in k at") && what.contains(words), "{inst}: {what}");
    }
}

/// A row narrower than the swizzle: bits of the address are what is exchanged.
#[test]
fn a_swizzle_is_of_addresses() {
    let map = map(Element::U8, &[32, 64], &[32, 64], Swizzle::B128);
    let array: Vec<u8> = (0..2048).map(|i| (i * 7 % 256) as u8).collect();
    let args = [Arg::Scratch(2048), Arg::Map(&array, map), Arg::Int(2048)].into_iter().chain(ints(&[0, 0]));
    let launch = Launch { shared: 2048, ..line(1, 32) };
    let (out, _) = run(PTX, "box_in_2", &launch, &args.collect::<Vec<_>>()).unwrap();
    for (i, byte) in array.iter().enumerate() {
        let [line, chunk] = [i / 128 % 8, i / 16 % 8];
        assert_eq!(out[0][i - chunk * 16 + (chunk ^ line) * 16], *byte);
    }
}

#[test]
fn maps_that_make_no_sense() {
    let mut emulator = Emulator::new(Module::parse("test.ptx", PTX).unwrap()).unwrap();
    let address = emulator.allocate("x", 4096);
    let good = TensorMap { address, ..map(Element::Bf16, &[64, 32], &[64, 32], Swizzle::B128) };
    let refused = |map: TensorMap, words: &str| {
        let what = emulator.tensor_map(&map).unwrap_err().to_string();
        assert!(what.contains(words) && !what.contains('\n'), "{what}");
    };
    assert!(emulator.tensor_map(&good).is_ok());
    refused(TensorMap { address: address + 8, ..good.clone() }, "no multiple of 16");
    refused(TensorMap { strides: vec![136], ..good.clone() }, "stride 136 is no multiple of 16");
    refused(TensorMap { strides: vec![0], ..good.clone() }, "stride 0 over a size of 32");
    let single = TensorMap { sizes: vec![64, 1], strides: vec![0], tile: vec![64, 1], ..good.clone() };
    assert!(emulator.tensor_map(&single).is_ok(), "the driver takes a stride of 0 over a size of 1");
    refused(TensorMap { strides: vec![1 << 40], ..good.clone() }, "stride 1099511627776");
    refused(TensorMap { tile: vec![64, 257], ..good.clone() }, "box side 257");
    refused(TensorMap { tile: vec![0, 1], ..good.clone() }, "box side 0");
    refused(TensorMap { tile: vec![128, 1], ..good.clone() }, "256 bytes, the swizzle takes at most 128");
    refused(TensorMap { tile: vec![12, 1], ..good.clone() }, "24 bytes, a multiple of 16");
    refused(TensorMap { steps: vec![1, 9], ..good.clone() }, "element stride 9");
    refused(TensorMap { sizes: vec![64, 0], ..good.clone() }, "size 0");
    refused(TensorMap { sizes: vec![64, 33], ..good.clone() }, "4224 bytes at");
    refused(
        TensorMap { sizes: vec![1 << 32, 1 << 32], strides: vec![1 << 39], ..good.clone() },
        "has no end",
    );
    refused(TensorMap { sizes: vec![], ..good.clone() }, "0 dimensions");
    refused(TensorMap { steps: vec![1], ..good.clone() }, "one stride less");
}

#[test]
fn a_map_where_it_may_not_be() {
    let x = bytes_of(&noise(64, 1)).to_vec();
    let map = || Arg::Map(&x, asynchronous::plane(8, 8, [8, 8], Swizzle::None));
    let args = || [Arg::Scratch(256), map()];
    bugs::caught(
        BUGS,
        "map_on_the_stack",
        &line(1, 64),
        &args(),
        ("map_on_the_stack", "access"),
        &["const __grid_constant__"],
    );
    judge_all(BUGS, "map_on_the_stack_right", &line(1, 64), &args(), |out| assert_eq!(out[0], x));
    // In global memory: a copy is as good; one bit less is not.
    let mut emulator = Emulator::new(Module::parse("test.ptx", BUGS).unwrap()).unwrap();
    let array = emulator.allocate("array", 256);
    emulator.write(array, &x).unwrap();
    let plane = TensorMap { address: array, ..asynchronous::plane(8, 8, [8, 8], Swizzle::None) };
    let good = emulator.tensor_map(&plane).unwrap();
    for damaged in [None, Some(0), Some(20), Some(97), Some(127)] {
        let mut bytes = good;
        damaged.into_iter().for_each(|at: usize| bytes[at] ^= 4);
        let mut launch = |shift: usize, words: &str| {
            let (out, at) = (emulator.allocate("out", 256), emulator.allocate("map", 256));
            emulator.write(at, &[0; 256]).unwrap();
            emulator.write(at + shift as u64, &bytes).unwrap();
            let values = [out, at + shift as u64, array].map(u64::to_le_bytes);
            let args: Vec<&[u8]> = values.iter().map(|v| &v[..]).collect();
            match emulator.launch("map_in_memory", &line(1, 64), &args) {
                Ok(_) => assert!(words.is_empty() && emulator.read(out, 256).unwrap() == x),
                Err(e) => assert!(!words.is_empty() && e.to_string().contains(words), "{e}"),
            }
        };
        launch(64, if damaged.is_some() { "is no tensor map, or a damaged one" } else { "" });
        launch(16, "misaligned: a tensor map");
    }
}
