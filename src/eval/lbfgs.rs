//! The smallest value of a smooth function by L-BFGS (Liu & Nocedal, 1989), step for step as SciPy's L-BFGS-B without bounds.

use super::line_search::{LineSearch, Point};
use std::collections::VecDeque;

/// Steps whose curvature is remembered.
const MEMORY: usize = 10;

/// When to stop.
#[derive(Clone, Copy, Debug)]
pub struct Stop {
    /// Steps at most.
    pub steps: usize,
    /// The largest element of the gradient that is small enough.
    pub gradient: f64,
    /// The decrease of one step, relative to the value (or to 1 if that is less), that is small enough.
    pub decrease: f64,
    /// Evaluations of one line search at most.
    pub searches: usize,
}

/// Where the search ended.
#[derive(Clone, Debug)]
pub struct Minimum {
    /// The place.
    pub x: Vec<f64>,
    /// The value there.
    pub value: f64,
    /// Steps taken.
    pub steps: usize,
    /// Whether it was small enough, and not the number of steps or a search without success, that ended it.
    pub converged: bool,
}

/// One step and the change of the gradient along it.
struct Curvature {
    step: Vec<f64>,
    change: Vec<f64>,
    product: f64,
}

/// From `x` downwards; `function` gives the value at a place and writes the gradient there.
pub fn minimum(mut function: impl FnMut(&[f64], &mut [f64]) -> f64, mut x: Vec<f64>, stop: Stop) -> Minimum {
    let mut gradient = vec![0.0; x.len()];
    let mut value = function(&x, &mut gradient);
    let largest = |g: &[f64]| g.iter().fold(0.0, |most, g| f64::max(most, g.abs()));
    let (mut memory, mut steps) = (VecDeque::new(), 0);
    let mut converged = largest(&gradient) <= stop.gradient;
    while !converged && steps < stop.steps {
        let direction = descent(&gradient, &memory);
        let slope = dot(&gradient, &direction);
        // Of the very first step nothing is known but the direction.
        let first = if steps == 0 { (1.0 / dot(&direction, &direction).sqrt()).min(1e10) } else { 1.0 };
        let start = Point { step: first, value, slope };
        let Some(found) = searched(&mut function, &x, &direction, start, stop.searches) else {
            // What is remembered misleads: from here as if nothing were known. Without memory there is no better.
            if memory.is_empty() {
                break;
            }
            memory.clear();
            continue;
        };

        let change: Vec<f64> = found.gradient.iter().zip(&gradient).map(|(new, old)| new - old).collect();
        let step: Vec<f64> = direction.iter().map(|d| found.point.step * d).collect();
        let product = (found.point.slope - slope) * found.point.step;
        // The function must curve upwards along the step, or the directions to come would not lead down.
        if product > f64::EPSILON * -slope * found.point.step {
            memory.push_back(Curvature { step, change, product });
            if memory.len() > MEMORY {
                memory.pop_front();
            }
        }
        let decrease = value - found.point.value;
        let scale = value.abs().max(found.point.value.abs()).max(1.0);
        (x, gradient, value) = (found.x, found.gradient, found.point.value);
        steps += 1;
        converged = largest(&gradient) <= stop.gradient || decrease <= stop.decrease * scale;
    }
    Minimum { x, value, steps, converged }
}

/// `-H g` by the two loops, `H` being the inverse Hessian that the remembered steps tell.
fn descent(gradient: &[f64], memory: &VecDeque<Curvature>) -> Vec<f64> {
    let mut d: Vec<f64> = gradient.iter().map(|g| -g).collect();
    let mut factors = Vec::with_capacity(memory.len());
    for m in memory.iter().rev() {
        let factor = dot(&m.step, &d) / m.product;
        d.iter_mut().zip(&m.change).for_each(|(d, y)| *d -= factor * y);
        factors.push(factor);
    }
    if let Some(last) = memory.back() {
        let scale = last.product / dot(&last.change, &last.change);
        d.iter_mut().for_each(|d| *d *= scale);
    }
    for (m, factor) in memory.iter().zip(factors.into_iter().rev()) {
        let factor = factor - dot(&m.change, &d) / m.product;
        d.iter_mut().zip(&m.step).for_each(|(d, s)| *d += factor * s);
    }
    d
}

/// What a line search found.
struct Found {
    x: Vec<f64>,
    gradient: Vec<f64>,
    point: Point,
}

/// Along `direction` from `x`; `start` has value and slope there, and the step to try first.
fn searched(
    function: &mut impl FnMut(&[f64], &mut [f64]) -> f64,
    x: &[f64],
    direction: &[f64],
    start: Point,
    searches: usize,
) -> Option<Found> {
    // NaN leads nowhere either.
    if !matches!(start.slope.partial_cmp(&0.0), Some(std::cmp::Ordering::Less)) {
        return None;
    }
    let mut search = LineSearch::new(start.value, start.slope, start.step);
    let (mut step, mut gradient) = (start.step, vec![0.0; x.len()]);
    for _ in 0..searches {
        let place: Vec<f64> = x.iter().zip(direction).map(|(x, d)| x + step * d).collect();
        let value = function(&place, &mut gradient);
        let point = Point { step, value, slope: dot(&gradient, direction) };
        match search.next_step(point) {
            Some(next) if next.is_finite() => step = next,
            Some(_) => return None,
            None => return Some(Found { x: place, gradient, point }),
        }
    }
    None
}

/// In 8 sums, so that it vectorises; the order is fixed.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    let ((a8, a_rest), (b8, b_rest)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    let mut sums = [0.0; 8];
    for (a, b) in a8.iter().zip(b8) {
        for i in 0..8 {
            sums[i] += a[i] * b[i];
        }
    }
    let rest: f64 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f64>() + rest
}
