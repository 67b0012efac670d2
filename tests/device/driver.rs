//! The CUDA driver layer without a GPU: against a libcuda of our own that answers as it is told and writes down what is
//! launched (`tests/device/driver/libcuda.c`). Each test runs itself again in a process that finds that one.
#![cfg(target_os = "linux")]

use crate::answers;
use crate::command;
use crate::common;

use answers::built;
use command::{Tiny, compiled, folder, good, llm2vec, prose, str};
use llm2vec::bench::record::Record;
use llm2vec::device::gpu::{Gpu, Graphs, Launch, Swizzle, Tiles};
use llm2vec::device::{DType, Device};
use llm2vec::error::Error;
use llm2vec::launches::l2norm::{self, L2normFwd};
use llm2vec::ops::adamw::{AdamW, adamw_step};
use llm2vec::ops::l2norm::l2norm_fwd;
use llm2vec::ops::pool::{Pooling, pool_bwd, pool_fwd};
use llm2vec::ops::rmsnorm::rmsnorm_fwd;
use llm2vec::tensor::Tensor;
use std::process::Command;

/// The folder of the false driver, compiled; nothing where there is no C compiler.
pub fn driver() -> Option<tempfile::TempDir> {
    let dir = folder();
    compiled(dir.path(), "libcuda.so", "libcuda.c", &[]).then_some(dir)
}

/// Runs `body` in a process of its own that has the false driver; gives what that wrote down.
fn with_driver(test: &str, env: &[(&str, &str)], body: impl FnOnce()) -> Option<String> {
    if std::env::var_os("FAKE_LOG").is_some() {
        body();
        return None;
    }
    let dir = driver()?;
    let log = dir.path().join("log");
    let output = Command::new(std::env::current_exe().unwrap())
        .args([&format!("driver::{test}"), "--exact", "--nocapture"])
        .env("LD_LIBRARY_PATH", dir.path())
        .env("FAKE_LOG", &log)
        .envs(env.iter().copied())
        .output()
        .unwrap();
    let said =
        String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
    Some(std::fs::read_to_string(&log).unwrap_or_default())
}

/// Each of `wanted` begins a line of `log` after the one before.
fn in_order(log: &str, wanted: &[&str]) {
    let mut rest = log.lines();
    for wanted in wanted {
        assert!(rest.any(|l| l.starts_with(wanted.trim_end())), "`{wanted}` is not in its place:\n{log}");
    }
}

fn on(gpu: &Gpu, shape: &[usize], value: f64) -> Tensor {
    let n = shape.iter().product();
    Tensor::from_f64(DType::F32, shape, std::iter::repeat_n(value, n)).to_gpu(gpu, DType::F32).unwrap()
}

/// Rows of 8, by the launcher: without the op's own launch.
fn launched(gpu: &Gpu, launch: Launch, y: &mut Tensor, norm: &mut Tensor, x: &Tensor) -> Result<(), Error> {
    let arguments = L2normFwd { y, norm, x, c: 8, k: 8, eps: 0.25 };
    // SAFETY: the false driver runs nothing.
    unsafe { l2norm::l2norm_fwd(gpu, launch, arguments) }
}

/// Each way of having no GPU is one line that says which.
#[test]
fn every_refusal_is_one_clear_line() {
    let Some(dir) = driver() else { return };
    let major = option_env!("LLM2VEC_NVCC").map_or("12", |v| v.split('.').next().unwrap());
    let old = format!("the driver is of CUDA 11.4, too old: this build needs CUDA {major}.0 or newer");
    let refusals = [
        ("cuda", ("FAKE_VERSION", "11040"), old.as_str()),
        ("cuda", ("FAKE_INIT", "100"), "cuInit failed: CUDA_ERROR_NO_DEVICE"),
        ("cuda", ("FAKE_INIT", "34"), "cuInit failed: CUDA_ERROR_STUB_LIBRARY"),
        ("cuda", ("FAKE_COUNT", "0"), "cuda:0: the driver sees no GPU"),
        ("cuda:3", ("FAKE_COUNT", "2"), "cuda:3: the driver sees 2, numbered from 0"),
        ("cuda:x", ("FAKE_COUNT", "1"), "expected cuda or cuda:N"),
        ("cuda", ("LD_LIBRARY_PATH", "/nowhere"), "no CUDA driver (libcuda was not found)"),
    ];
    // A machine with a driver cannot show what one without says.
    let real = !Gpu::cuda(0).is_err_and(|e| e.to_string().contains("libcuda was not found"));
    for (device, env, says) in refusals.into_iter().take(if real { 6 } else { 7 }) {
        let says =
            if option_env!("LLM2VEC_NVCC").is_some() { says } else { "this build holds no CUDA kernels" };
        let model = common::novel5m();
        let output = Command::new(env!("CARGO_BIN_EXE_llm2vec"))
            .args(["encode", "-i", "-", "-o", "-", "--device", device, "-m", model.to_str().unwrap()])
            .env("LD_LIBRARY_PATH", dir.path())
            .envs([env])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success() && said.contains(says) && said.lines().count() == 1,
            "{env:?}: {said}"
        );
    }
}

/// Memory, both copies, a launch with its numbers, and what a kernel wrote.
#[test]
fn a_launch_has_the_arguments_of_its_op() {
    if !built() {
        return;
    }
    let log = with_driver("a_launch_has_the_arguments_of_its_op", &[], || {
        let gpu = Gpu::cuda(0).unwrap();
        let device = Device::Gpu(gpu.clone());
        assert_eq!((gpu.name(), gpu.capability(), gpu.processors()), ("Fake 0", (9, 0), 132));
        let (mut y, mut norm, x) = (on(&gpu, &[3, 8], 1.0), on(&gpu, &[3], 2.0), on(&gpu, &[3, 8], 3.0));
        l2norm_fwd(&device, &mut y, &mut norm, &x, 0.25).unwrap();
        assert_eq!(y.to_f64()[..2], [42.0, 1.0]);
        let by = AdamW { rate: 0.5, beta1: 0.5, beta2: 0.75, eps: 0.125, decay: 0.5, step: 1 };
        let (mut p, mut m, mut v) =
            (on(&gpu, &[2, 513], 4.0), on(&gpu, &[2, 513], 5.0), on(&gpu, &[2, 513], 6.0));
        adamw_step(&device, &mut p, &mut m, &mut v, &on(&gpu, &[2, 513], 7.0), None, by).unwrap();
        // Four types through the device and back.
        for dtype in [DType::F64, DType::F32, DType::Bf16, DType::I32] {
            let host = Tensor::from_f64(DType::F64, &[2, 2], [1.0, -2.0, 3.0, 256.0]);
            let back = host.to_gpu(&gpu, dtype).unwrap().to_host().unwrap();
            assert_eq!((back.dtype(), back.to_f64()), (dtype, host.to_f64()));
        }
    });
    if let Some(log) = log {
        // keep, rate / (1 - b1), 1 - b1, b2, 1 - b2, root of 1 - b2, eps
        let step = "adamw_step 2,1,1 256,1,1 0 [4] [5] [6] [7] null 1026 0 0.75 1 0.5 0.75 0.25 0.5 0.125";
        let norm = "l2norm_fwd 3,1,1 256,1,1 0 [1] [2] [3] 8 8 0.25";
        assert_eq!(log.lines().next(), Some("load cubin"), "{log}");
        assert!(log.contains(norm) && log.contains(step), "{log}");
    }
}

#[test]
fn operands_that_a_gpu_does_not_take_are_refused() {
    if !built() {
        return;
    }
    with_driver("operands_that_a_gpu_does_not_take_are_refused", &[], || {
        let gpu = Gpu::cuda(0).unwrap();
        let device = Device::Gpu(gpu.clone());
        let says = |result: Result<(), Error>, what: &str| {
            let error = result.unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        };
        let norm = |y: &mut Tensor, x: &Tensor| l2norm_fwd(&device, y, &mut on(&gpu, &[2], 0.0), x, 1e-12);
        says(norm(&mut on(&gpu, &[2, 6], 0.0), &on(&gpu, &[2, 6], 0.0)), "C = 6, a GPU takes multiples of 4");
        let host = Tensor::zeros(DType::F32, &[2, 8]);
        says(norm(&mut on(&gpu, &[2, 8], 0.0), &host), "x is not on Fake 0");
        let half = host.to_gpu(&gpu, DType::Bf16).unwrap();
        says(norm(&mut on(&gpu, &[2, 8], 0.0), &half), "x holds Bf16, the kernel takes F32");
        let other = Gpu::cuda(0).unwrap();
        says(norm(&mut on(&gpu, &[2, 8], 0.0), &on(&other, &[2, 8], 0.0)), "x is not on");
        let wide = on(&gpu, &[1, 8200], 0.0);
        let result = rmsnorm_fwd(
            &device,
            &mut wide.clone(),
            &mut on(&gpu, &[1], 0.0),
            &wide,
            &on(&gpu, &[8200], 0.0),
            1e-5,
        );
        says(result, "C = 8200, a GPU takes at most 8192");
        says(
            gpu.memory(1 << 30).map(drop),
            "cuMemAllocAsync of 1073741824 bytes failed: CUDA_ERROR_OUT_OF_MEMORY",
        );
        says(gpu.memory(8).unwrap().write(4, &[0; 5]), "5 bytes from 4 on leave the 8");
    });
}

/// An image that the GPU does not run, and failures of the launch and after it, name the kernel.
#[test]
fn failures_name_the_kernel() {
    if !built() {
        return;
    }
    let cases: [(&[(&str, &str)], &str); 5] = [
        (
            &[("FAKE_MAJOR", "7"), ("FAKE_MINOR", "5")],
            "l2norm_fwd: Fake 0 is of compute capability 7.5, kernels/l2norm.cu",
        ),
        (
            &[("FAKE_LOAD", "209")],
            "cuModuleLoadData of kernels/l2norm.cu for sm_90 failed: CUDA_ERROR_NO_BINARY_FOR_GPU",
        ),
        (
            &[("FAKE_LAUNCH", "1")],
            "l2norm_fwd [2, 1, 1] x [256, 1, 1]: cuLaunchKernelEx failed: CUDA_ERROR_INVALID_VALUE",
        ),
        (
            &[("FAKE_AFTER", "700")],
            "CUDA_ERROR_ILLEGAL_ADDRESS, in or before l2norm_fwd; LLM2VEC_SYNC=1 waits",
        ),
        (
            &[("FAKE_AFTER", "700"), ("LLM2VEC_SYNC", "1")],
            "CUDA_ERROR_ILLEGAL_ADDRESS, in or before l2norm_fwd",
        ),
    ];
    let expected = std::env::var("EXPECTED").unwrap_or_default();
    for (env, says) in cases {
        let env: Vec<_> = env.iter().copied().chain([("EXPECTED", says)]).collect();
        let ran = with_driver("failures_name_the_kernel", &env, || {
            let gpu = Gpu::cuda(0).unwrap();
            let device = Device::Gpu(gpu.clone());
            let (mut y, mut norm, x) = (on(&gpu, &[2, 8], 1.0), on(&gpu, &[2], 2.0), on(&gpu, &[2, 8], 3.0));
            let result = l2norm_fwd(&device, &mut y, &mut norm, &x, 0.25).and_then(|()| gpu.synchronize());
            let error = result.unwrap_err().to_string();
            assert!(error.contains(&expected) && !error.contains('\n'), "{error}");
        });
        if ran.is_none() {
            return; // the second process does one of them
        }
    }
}

/// A GPU that is newer than the cubins gets PTX; attributes, events, graphs and tensor maps.
#[test]
fn the_rest_of_the_driver() {
    if !built() {
        return;
    }
    let log = with_driver("the_rest_of_the_driver", &[("FAKE_MAJOR", "10")], || {
        let gpu = Gpu::cuda(0).unwrap();
        let (mut y, mut norm, x) = (on(&gpu, &[2, 8], 1.0), on(&gpu, &[2], 2.0), on(&gpu, &[2, 8], 3.0));
        let launch = Launch { cluster: [2, 1, 1], shared: 100 << 10, overlap: true, ..Launch::line(2, 256) };
        let mut run = || launched(&gpu, launch, &mut y, &mut norm, &x);
        assert_eq!(gpu.time(&mut run).unwrap(), 1.5);
        let graph = gpu.capture(&mut run).unwrap();
        graph.replay().unwrap();
        let failed = gpu.capture(|| Err(Error::unsupported("no")));
        assert!(
            failed.is_err_and(|e| e.to_string() == "no"),
            "the capture is ended and the body's error kept"
        );
        let memory = gpu.memory(4096).unwrap();
        let tiles = |stride| Tiles {
            float: false,
            sizes: vec![64, 32],
            strides: vec![stride],
            tile: vec![64, 16],
            swizzle: Swizzle::B128,
        };
        let map = gpu.tensor_map(&memory, &tiles(128)).unwrap();
        assert_eq!(map.0[..8], [64, 32, 128, 64, 16, 3, 9, 211]);
        let error = gpu.tensor_map(&memory, &tiles(100)).unwrap_err().to_string();
        assert!(error.contains("cuTensorMapEncodeTiled") && error.contains("strides: [100]"), "{error}");
        let flat = Tiles { strides: Vec::new(), ..tiles(128) };
        assert!(gpu.tensor_map(&memory, &flat).is_err(), "fewer strides than the rank wants");
        let held = gpu.available();
        assert_eq!(held, Some(1 << 29));
    });
    if let Some(log) = log {
        let launched = "l2norm_fwd 2,1,1 256,1,1 102400 @4=2 @6=1 ";
        let expected = [
            "load ptx",
            "attribute 8 102400",
            launched,
            "event",
            "capture 1",
            launched,
            "captured 1",
            "instantiate 1",
            "replay 1",
        ];
        in_order(&log, &expected);
        assert_eq!(log.matches("captured").count(), 2, "{log}");
        assert_eq!(log.matches("attribute").count(), 1, "leave is asked for once:\n{log}");
    }
}

/// The 48 KiB that need no leave hold a kernel's own arrays too.
#[test]
fn leave_is_asked_for_where_static_and_dynamic_memory_exceed_what_is_free() {
    if !built() {
        return;
    }
    let name = "leave_is_asked_for_where_static_and_dynamic_memory_exceed_what_is_free";
    let log = with_driver(name, &[("FAKE_STATIC", "16384")], || {
        let gpu = Gpu::cuda(0).unwrap();
        let (mut y, mut norm, x) = (on(&gpu, &[2, 8], 1.0), on(&gpu, &[2], 2.0), on(&gpu, &[2, 8], 3.0));
        for shared in [32 << 10, 33 << 10, 40 << 10, 36 << 10] {
            let launch = Launch { shared, ..Launch::line(2, 256) };
            launched(&gpu, launch, &mut y, &mut norm, &x).unwrap();
        }
    });
    if let Some(log) = log {
        let asked: Vec<&str> = log.lines().filter(|l| l.starts_with("attribute")).collect();
        assert_eq!(asked, ["attribute 8 33792", "attribute 8 40960"], "{log}");
    }
}

/// A grid has no more than 65,535 blocks along y: as many texts and rows as there are lie along x.
#[test]
fn a_pack_may_have_more_texts_than_a_grid_is_high() {
    if !built() {
        return;
    }
    let log = with_driver("a_pack_may_have_more_texts_than_a_grid_is_high", &[], || {
        let gpu = Gpu::cuda(0).unwrap();
        let (device, texts) = (Device::Gpu(gpu.clone()), 70_000);
        let x = Tensor::zeros(DType::F32, &[70_000, 8]).to_gpu(&gpu, DType::Bf16).unwrap();
        let (mut y, mut dx) = (on(&gpu, &[texts, 8], 0.0), x.clone());
        let spans = Tensor::zeros(DType::I32, &[texts, 2]).to_gpu(&gpu, DType::I32).unwrap();
        pool_fwd(&device, &mut y, &x, &spans, Pooling::Mean).unwrap();
        pool_bwd(&device, &mut dx, &y, &spans, Pooling::Mean).unwrap();
    });
    if let Some(log) = log {
        in_order(&log, &["pool_fwd 70000,1,1", "pool_bwd 2188,1,1"]);
    }
}

/// A stretch is recorded every time; its graph is changed in place, and made anew where it has other nodes. A kernel whose code
/// comes late is loaded during the recording.
#[test]
fn a_stretch_is_recorded_and_its_graph_updated() {
    if !built() {
        return;
    }
    let stretches = || {
        let gpu = Gpu::cuda(0).unwrap();
        let device = Device::Gpu(gpu.clone());
        let (mut y, mut norm, x) = (on(&gpu, &[3, 8], 1.0), on(&gpu, &[3], 2.0), on(&gpu, &[3, 8], 3.0));
        let (mut w, graphs) = (on(&gpu, &[5], 0.0), Graphs::of(&gpu));
        let mut run = |name, eps: &[f64]| {
            graphs.run(name, || eps.iter().try_for_each(|&e| l2norm_fwd(&device, &mut y, &mut norm, &x, e)))
        };
        run("one", &[0.25]).unwrap();
        run("one", &[0.5]).unwrap();
        run("other", &[0.25]).unwrap();
        run("one", &[0.75, 0.25]).unwrap();
        run("one", &[0.25, 0.75]).unwrap();
        let refused = |out: Result<(), Error>, what: &str| {
            let error = out.unwrap_err().to_string();
            assert_eq!(error, format!("{what} while launches are captured"));
        };
        if std::env::var_os("LLM2VEC_SYNC").is_none() {
            refused(graphs.run("bad", || w.write(&[1.0f32; 5])), "a copy to the device");
            refused(graphs.run("bad", || w.read().map(drop)), "a copy to the host");
            refused(graphs.run("bad", || gpu.memory(8).map(drop)), "an allocation");
            refused(graphs.run("bad", || graphs.run("inner", || Ok(()))), "a capture");
        }
    };
    let name = "a_stretch_is_recorded_and_its_graph_updated";
    if let Some(log) = with_driver(name, &[], stretches) {
        let made = ["capture 1", "load", "l2norm_fwd 3", "captured 1", "instantiate 1", "replay 1"];
        let updated = ["capture 1", "l2norm_fwd 3", "captured 1", "update 1 to 1", "replay 1"];
        let other = ["capture 1", "l2norm_fwd 3", "captured 1", "instantiate 1", "replay 1"];
        let changed = ["captured 2", "update 1 to 2", "dropped", "instantiate 2", "replay 2"];
        let again = ["captured 2", "update 2 to 2", "replay 2", "captured 0", "captured 0"];
        in_order(&log, &[&made[..], &updated, &other, &changed, &again].concat());
        assert_eq!(log.matches("instantiate").count(), 3, "{log}");
        let log = with_driver(name, &[("LLM2VEC_SYNC", "1")], stretches).unwrap();
        assert!(!log.contains("capture") && log.contains("l2norm_fwd"), "each is waited for:\n{log}");
    }
}

/// Small copies to the device are taken over at once; only when their room is full is the device waited for.
#[test]
fn small_copies_wait_for_nothing() {
    let log = with_driver("small_copies_wait_for_nothing", &[], || {
        let gpu = Gpu::cuda(0).unwrap();
        let mut memory = gpu.memory(1 << 20).unwrap();
        for i in 0..7u8 {
            memory.write(i as usize, &vec![i; 300_000]).unwrap();
        }
        let mut back = vec![9; 8];
        memory.read(0, &mut back).unwrap();
        assert_eq!(back, [0, 1, 2, 3, 4, 5, 6, 6]);
    });
    // Three of them fill the room, so the fourth and the seventh wait; then the copy back, and the end.
    log.into_iter().for_each(|log| assert_eq!(log.matches("wait").count(), 4, "{log}"));
}

/// Behind each sample one thread reads the multiprocessor's clock, and the row bears the median.
#[test]
fn a_timed_row_names_the_clock_it_ran_at() {
    let Some(dir) = driver().filter(|_| built()) else { return };
    let (log, json) = (dir.path().join("log"), dir.path().join("ops.json"));
    let cases = ["bench", "ops", "-q", "--device", "cuda", "--kernels", "portable", "--cases", "table"];
    let how = ["--filter", "swiglu_bwd N=65", "--rounds", "2", "--samples", "3", "-o", str(&json)];
    let mut command = llm2vec(&[&cases[..], &how].concat());
    // Room for what empties the level-2 cache.
    let room = (300 << 20).to_string();
    command.env("LD_LIBRARY_PATH", dir.path()).env("FAKE_LOG", &log).env("FAKE_MOST", room);
    let text = good(command);
    let record: Record = serde_json::from_str(&std::fs::read_to_string(&json).unwrap()).unwrap();
    assert_eq!(record.rows.iter().map(|row| row.clock_mhz).collect::<Vec<_>>(), [Some(1980.0)], "{text}");
    assert!(text.lines().nth(1).is_some_and(|row| row.ends_with(" 1980")), "{text}");
    let log = std::fs::read_to_string(&log).unwrap();
    in_order(&log, &["swiglu_bwd", "event", "clock_fwd 1,1,1 1,1,1 0", "swiglu_bwd", "event", "clock_fwd"]);
    // Of the row, and of the product that the roof is measured by.
    assert_eq!(log.matches("clock_fwd").count(), 12, "{log}");
}

/// A training on the false driver, whose kernels compute nothing: a step is five graphs, made at the first and updated from
/// then on, and the host waits for the loss and for the gradient's norm alone. Without graphs the launches are the same.
#[test]
fn the_steps_of_a_run_are_graphs() {
    let Some(dir) = driver().filter(|_| built()) else { return };
    let (tiny, out) = (Tiny::wide(64), folder());
    let [graphs, plain] = [&[][..], &["--no-graph"]].map(|more| {
        let (log, output) = (dir.path().join("log"), out.path().join(format!("run{}", more.len())));
        let common = ["train", "simcse", "-m", tiny.path(), "--data", prose(), "-o", str(&output), "--quiet"];
        let sizes = [
            "--batch",
            "4",
            "--max-length",
            "12",
            "--rank",
            "8",
            "--steps",
            "3",
            "--device",
            "cuda",
            "--kernels",
            "portable",
        ];
        let mut command = llm2vec(&[&common[..], &sizes, more].concat());
        command.env("LD_LIBRARY_PATH", dir.path()).env("FAKE_LOG", &log);
        good(command);
        std::fs::read_to_string(&log).unwrap()
    });
    let driver = ["wait", "capture", "captured", "instantiate", "update", "replay", "dropped"];
    let ours = |line: &&str| driver.contains(&line.split(' ').next().unwrap());
    let launches = |log: &str| log.lines().filter(|l| !ours(l)).map(String::from).collect::<Vec<_>>();
    assert_eq!(launches(&graphs), launches(&plain));
    assert!(!plain.contains("capture"), "{plain}");

    let calls =
        graphs.lines().filter(ours).skip_while(|l| *l == "wait").map(|l| l.split(' ').next().unwrap());
    let step = |made: &'static str| {
        let graph =
            |wait: bool| ["capture", "captured", made, "replay"].into_iter().chain(wait.then_some("wait"));
        // embed, score, backward | norm | update
        [false, false, true, true, false].into_iter().flat_map(graph)
    };
    let expected: Vec<&str> = step("instantiate").chain(step("update")).chain(step("update")).collect();
    assert_eq!(calls.take(expected.len()).collect::<Vec<_>>(), expected, "{graphs}");
}
