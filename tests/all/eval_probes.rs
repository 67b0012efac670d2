//! Measures and small learners of `eval` against scikit-learn, MTEB and PyTorch, by what `tests/golden/make_probes.py` wrote.

mod real;
mod sampled;

use crate::common::here;
use llm2vec::eval::kmeans::{self, mini_batch_kmeans};
use llm2vec::eval::logistic::{self, Logistic};
use llm2vec::eval::mersenne::Mersenne;
use llm2vec::eval::metrics::{accuracy, average_precision::average_precision, vmeasure::v_measure};
use llm2vec::eval::probe::{Options, Probe, Words};
use llm2vec::eval::sampling::samples;
use serde::de::DeserializeOwned;
use serde_json::Value;

fn golden(name: &str) -> Vec<Value> {
    let file = std::fs::read(here("tests/golden/probes.json")).unwrap();
    let json: Value = serde_json::from_slice(&file).unwrap();
    json[name].as_array().unwrap().clone()
}

fn take<T: DeserializeOwned>(value: &Value) -> T {
    serde_json::from_value(value.clone()).unwrap()
}

#[track_caller]
fn near(got: f64, wanted: &Value, tolerance: f64, what: &str) {
    let wanted = wanted.as_f64().unwrap();
    assert!((got - wanted).abs() <= tolerance, "{what}: {got}, {wanted} was wanted");
}

/// `blobs` of the script.
fn blobs(case: &Value, other: u32) -> (Vec<f32>, Vec<usize>, usize) {
    let [seed, rows, width, centers]: [u32; 4] = take(&case["blobs"]);
    let [rows, width, centers] = [rows, width, centers].map(|n| n as usize);
    let spread = case["spread"].as_f64().unwrap();
    let mut random = Mersenne::new(seed + other);
    let middle: Vec<f64> = (0..centers * width).map(|_| random.unit() * 4.0).collect();
    let mut x = Vec::with_capacity(rows * width);
    for row in 0..rows {
        for column in 0..width {
            let u = [random.unit(), random.unit(), random.unit()];
            let noise = (u[0] + u[1] + u[2] - 1.5) * spread;
            x.push((middle[row % centers * width + column] + noise) as f32);
        }
    }
    (x, (0..rows).map(|row| row % centers).collect(), width)
}

#[test]
fn measures_equal_mteb_and_scikit_learn() {
    for case in golden("measures") {
        let (truth, answers): (Vec<usize>, Vec<usize>) = (take(&case["truth"]), take(&case["answers"]));
        let got = accuracy::scores(&truth, &answers);
        let v = v_measure(&truth, &answers);
        let pairs = [
            (got.accuracy, &case["accuracy"]),
            (got.by_class.f1, &case["f1"]),
            (got.by_row.f1, &case["f1_weighted"]),
            (got.by_class.precision, &case["precision"]),
            (got.by_row.precision, &case["precision_weighted"]),
            (got.by_class.recall, &case["recall"]),
            (got.by_row.recall, &case["recall_weighted"]),
            (v.homogeneity, &case["v"][0]),
            (v.completeness, &case["v"][1]),
            (v.v_measure, &case["v"][2]),
        ];
        for (i, (got, wanted)) in pairs.into_iter().enumerate() {
            near(got, wanted, 1e-12, &format!("{}, measure {i}", case["name"]));
        }
        if !case["ap"].is_null() {
            let positive: Vec<bool> = truth.iter().map(|&t| t == 1).collect();
            let answers: Vec<f64> = answers.iter().map(|&a| a as f64).collect();
            near(average_precision(&positive, &answers), &case["ap"], 1e-12, "ap of answers");
        }
    }
    for (i, case) in golden("precisions").into_iter().enumerate() {
        let got =
            average_precision(&take::<Vec<bool>>(&case["positive"]), &take::<Vec<f64>>(&case["scores"]));
        near(got, &case["ap"], 1e-12, &format!("precisions {i}"));
    }
}

#[test]
fn measures_of_no_row() {
    let none = accuracy::scores(&[], &[]);
    assert_eq!((none.accuracy, none.by_class.f1, none.by_row.f1), (0.0, 0.0, 0.0));
    // As scikit-learn has it.
    assert_eq!(v_measure(&[], &[]).v_measure, 1.0);
    assert_eq!(average_precision(&[], &[]), 0.0);
}

#[test]
fn samples_equal_mteb() {
    for case in golden("samples") {
        let labels: Vec<usize> = take(&case["labels"]);
        let (seed, per_label): (u32, usize) = (take(&case["seed"]), take(&case["per_label"]));
        let runs: Vec<Vec<usize>> = take(&case["runs"]);
        assert_eq!(samples(&labels, per_label, runs.len(), seed), runs, "seed {seed}, {per_label} per label");
    }
}

/// Weights, steps and answers, also where the limit of steps is hit.
#[test]
fn regressions_equal_scikit_learn() {
    for (i, case) in golden("regressions").into_iter().enumerate() {
        let ((x, y, width), (z, ..)) = (blobs(&case, 0), blobs(&case, 100));
        let max_iter = take(&case["max_iter"]);
        let classes = y.iter().max().unwrap() + 1;
        let options = logistic::Options { max_iter, tol: take(&case["tol"]), ..logistic::Options::default() };
        let model = Logistic::fit(&x, width, &y, classes, options).unwrap();
        let steps: usize = take(&case["steps"]);
        assert_eq!(model.converged, steps < max_iter, "case {i}");
        assert!(model.steps == steps || steps > 100, "case {i}: {} steps, {steps} were wanted", model.steps);
        let scores = model.scores(&z);
        // At the very bottom the loss no longer tells weights apart that differ in the sixth place.
        let tolerance = if steps > 100 { 1e-4 } else { 1e-6 };
        for (name, got) in
            [("weights", &model.weights), ("intercepts", &model.intercepts), ("scores", &scores)]
        {
            for (got, wanted) in got.iter().zip(case[name].as_array().unwrap()) {
                near(*got, wanted, tolerance, &format!("case {i}, {name}"));
            }
        }
        assert_eq!(model.classes(&scores), take::<Vec<usize>>(&case["answers"]), "case {i}");
    }
}

#[test]
fn regressions_refuse_what_they_cannot_learn() {
    let fit = |x: &[f32], y: &[usize], classes| Logistic::fit(x, 1, y, classes, logistic::Options::default());
    let error = fit(&[1.0, 2.0], &[0, 0], 1).unwrap_err().to_string();
    assert!(error.contains("one class") && error.contains("at least two"), "{error}");
    let error = fit(&[1.0, f32::NAN], &[0, 1], 2).unwrap_err().to_string();
    assert!(error.contains("not finite"), "{error}");
    // Nothing to tell apart by: the answer is the larger class, and nothing breaks.
    let model = fit(&[0.0; 3], &[0, 1, 1], 2).unwrap();
    assert_eq!(model.classes(&model.scores(&[0.0])), [1]);
}

/// The same clusters as scikit-learn's, from the same draws.
#[test]
fn clusters_equal_scikit_learn() {
    for (i, case) in golden("clusterings").iter().enumerate() {
        let (x, y, width) = blobs(case, 0);
        let (clusters, starts, seed) = (take(&case["clusters"]), take(&case["starts"]), take(&case["seed"]));
        let options = kmeans::Options { clusters, batch: 500, starts, rounds: 100, seed };
        let got = mini_batch_kmeans(&x, width, options).unwrap();
        let wanted = case["inertia"].as_f64().unwrap();
        assert!((got.inertia / wanted - 1.0).abs() < 1e-5, "case {i}: {}, {wanted} was wanted", got.inertia);
        near(v_measure(&y, &got.labels).v_measure, &case["v"], 1e-12, &format!("case {i}"));
        assert_eq!(got.labels, take::<Vec<usize>>(&case["labels"]), "case {i}");
        assert_eq!(got.steps, take::<usize>(&case["steps"]), "case {i}");
    }
}

#[test]
fn clusters_of_odd_data() {
    let kmeans = |x: &[f32], clusters| {
        mini_batch_kmeans(x, 1, kmeans::Options { clusters, batch: 500, starts: 1, rounds: 100, seed: 42 })
    };
    let error = kmeans(&[1.0, 2.0], 3).unwrap_err().to_string();
    assert!(error.contains("2 rows") && error.contains("at least 3"), "{error}");
    let error = kmeans(&[1.0, f32::INFINITY], 2).unwrap_err().to_string();
    assert!(error.contains("not finite"), "{error}");
    // As many clusters as rows; the centers are not the rows, nor are scikit-learn's.
    let apart = kmeans(&[0.0, 10.0, 20.0, 30.0], 4).unwrap();
    assert_eq!((&apart.labels[..], apart.steps), (&[2, 1, 0, 3][..], 13));
    assert!((apart.inertia - 11.555_555).abs() < 1e-5, "{}", apart.inertia);
    // Rows that are all the same, up to the rounding of their mean.
    assert!(kmeans(&[5.0; 20], 3).unwrap().inertia < 1e-10);
}

fn options(case: &Value) -> Options {
    Options {
        epochs: take(&case["epochs"]),
        batch: take(&case["batch"]),
        rate: take(&case["rate"]),
        decay: take(&case["decay"]),
        max_grad_norm: take(&case["max_grad_norm"]),
        dropout: 0.0,
        // To rest, which takes longer than the paper trains.
        stop_after: usize::MAX,
        ..Options::default()
    }
}

/// With PyTorch's batches its losses step by step; with our own, where both have come to rest, its last one.
#[test]
fn probes_reach_the_losses_of_pytorch() {
    for (i, case) in golden("probes").iter().enumerate() {
        let (x, y, width) = blobs(case, 0);
        let (options, classes) = (options(case), y.iter().max().unwrap() + 1);
        let starts: Vec<usize> = (0..=y.len()).collect();
        let words = Words { features: &x, width, labels: &y, starts: &starts };
        let mut probe = Probe::new(width, classes);
        let all = options.epochs * y.len().div_ceil(options.batch);
        let (losses, mut step) = (case["losses"].as_array().unwrap(), 0);
        let seed: u32 = take(&case["blobs"][0]);
        for epoch in 0..options.epochs {
            let mut order: Vec<usize> = (0..y.len()).collect();
            Mersenne::new(seed + epoch as u32).shuffle(&mut order);
            for rows in order.chunks(options.batch) {
                let rate = options.rate * (all - step) as f64 / all as f64;
                let loss = probe.step(words, rows, rate, options).unwrap();
                if let Some(wanted) = losses.get(step) {
                    near(loss, wanted, 1e-5, &format!("case {i}, step {step}"));
                }
                step += 1;
            }
        }
        near(probe.loss(&x, &y).unwrap(), &case["final"], 1e-5, &format!("case {i}"));
        if options.epochs > 100 {
            let ours = Probe::train(words, classes, options, |_, _, _| {}).unwrap();
            near(ours.loss(&x, &y).unwrap(), &case["final"], 1e-4, "with our own batches");
        }
    }
}

/// Sentences stay whole, dropout is drawn anew each step, and two runs give the same bits.
#[test]
fn probes_are_deterministic_and_stop_where_told() {
    let (x, y, width) = blobs(&golden("probes")[0], 0);
    let starts: Vec<usize> = (0..=y.len()).filter(|i| i % 7 == 0 || *i == y.len()).collect();
    let words = Words { features: &x, width, labels: &y, starts: &starts };
    let options = Options { epochs: 3, batch: 4, rate: 0.02, ..Options::default() };
    let run = |options| {
        let mut losses = Vec::new();
        let probe = Probe::train(words, 5, options, |_, _, loss| losses.push(loss.to_bits())).unwrap();
        (losses, probe.scores(&x).unwrap())
    };
    let (losses, scores) = run(options);
    assert_eq!(losses.len(), 3 * (starts.len() - 1).div_ceil(4));
    assert_eq!(run(options), (losses.clone(), scores.clone()));
    assert_ne!(run(Options { seed: 7, ..options }).1, scores);
    assert_ne!(run(Options { dropout: 0.0, ..options }).1, scores);
    let stopped = run(Options { stop_after: 5, ..options });
    assert_eq!(stopped.0, losses[..5]);
    let error = Probe::train(words, 4, options, |_, _, _| {}).err().unwrap().to_string();
    assert!(error.contains("class 4") && error.contains("below 4"), "{error}");
}

/// What Python 3.11 gives for `random.Random(42)`.
#[test]
fn draws_equal_python() {
    let mut random = Mersenne::python(42);
    assert_eq!([random.unit(), random.unit()], [0.6394267984578837, 0.025010755222666936]);
    let mut random = Mersenne::python(42);
    assert_eq!(random.sample(30, 4), [20, 3, 0, 23]);
    assert_eq!(random.sample(1000, 6), [281, 250, 228, 142, 754, 104]);
    assert_eq!(random.sample(40, 7), [34, 5, 37, 27, 2, 1, 38]);
    assert_eq!([random.index(100), random.index(100), random.index(100)], [21, 50, 2]);
}
