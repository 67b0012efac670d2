//! The line search of Moré and Thuente (ACM TOMS 20, 1994), as in MINPACK-2, SciPy and its L-BFGS-B.

/// What of the predicted decrease is enough.
const DECREASE: f64 = 1e-3;
/// What of the first slope may be left.
const SLOPE: f64 = 0.9;
/// The bracket's width, relative to its end, at which searching on is no use.
const WIDTH: f64 = 0.1;
/// The largest step.
const MOST: f64 = 1e10;

/// A step with value and slope there.
#[derive(Clone, Copy, Debug)]
pub struct Point {
    /// Length along the direction.
    pub step: f64,
    /// The function there.
    pub value: f64,
    /// Its derivative along the direction.
    pub slope: f64,
}

impl Point {
    /// With the line of slope `tilt` taken off.
    fn tilted(self, tilt: f64) -> Point {
        Point { value: self.value - self.step * tilt, slope: self.slope - tilt, ..self }
    }
}

/// One search: asked for a step, told what was there, until it is content.
pub struct LineSearch {
    start: Point,
    /// The best step so far, and the other end of the interval that has a minimum.
    best: Point,
    other: Point,
    bracketed: bool,
    /// No step yet had both enough decrease and a rising slope.
    early: bool,
    bounds: [f64; 2],
    widths: [f64; 2],
}

impl LineSearch {
    /// Starts at step 0 with the given value and (negative) slope; `first` is the step tried next.
    pub fn new(value: f64, slope: f64, first: f64) -> LineSearch {
        let start = Point { step: 0.0, value, slope };
        let (bounds, widths) = ([0.0, 5.0 * first], [MOST, 2.0 * MOST]);
        LineSearch { start, best: start, other: start, bracketed: false, early: true, bounds, widths }
    }

    /// The next step to try, or `None` if `tried` is to be taken: because it is good, or because there is no better.
    pub fn next_step(&mut self, tried: Point) -> Option<f64> {
        let tilt = DECREASE * self.start.slope;
        let enough = self.start.value + tried.step * tilt;
        self.early &= !(tried.value <= enough && tried.slope >= 0.0);
        if self.is_final(tried, enough, tilt) {
            return None;
        }

        // Before there was a good step, the minimum that is looked for is that of the tilted function.
        let step = if self.early && tried.value <= self.best.value && tried.value > enough {
            (self.best, self.other) = (self.best.tilted(tilt), self.other.tilted(tilt));
            let step = self.refined(tried.tilted(tilt));
            (self.best, self.other) = (self.best.tilted(-tilt), self.other.tilted(-tilt));
            step
        } else {
            self.refined(tried)
        };
        Some(self.bounded(step))
    }

    fn is_final(&self, tried: Point, enough: f64, tilt: f64) -> bool {
        let [low, high] = self.bounds;
        let decreased = tried.value <= enough;
        let good = decreased && tried.slope.abs() <= -SLOPE * self.start.slope;
        let rounding = self.bracketed && (tried.step <= low || tried.step >= high);
        let narrow = self.bracketed && high - low <= WIDTH * high;
        let farthest = tried.step == MOST && decreased && tried.slope <= tilt;
        let nearest = tried.step == 0.0 && (!decreased || tried.slope >= tilt);
        good || rounding || narrow || farthest || nearest
    }

    /// A wide bracket is halved; a step stays inside of it, and is the best one where the bracket has become too narrow.
    fn bounded(&mut self, mut step: f64) -> f64 {
        let (best, other) = (self.best.step, self.other.step);
        if self.bracketed {
            if (other - best).abs() >= 0.66 * self.widths[1] {
                step = best + 0.5 * (other - best);
            }
            self.widths = [(other - best).abs(), self.widths[0]];
            self.bounds = [best.min(other), best.max(other)];
        } else {
            self.bounds = [step + 1.1 * (step - best), step + 4.0 * (step - best)];
        }
        let step = step.clamp(0.0, MOST);
        let [low, high] = self.bounds;
        let no_use = self.bracketed && (step <= low || step >= high || high - low <= WIDTH * high);
        if no_use { best } else { step }
    }

    /// The step of a cubic or a parabola through what is known (`dcstep`); `tried` becomes one end of the interval.
    fn refined(&mut self, tried: Point) -> f64 {
        let (best, other, [low, high]) = (self.best, self.other, self.bounds);
        let turned = tried.slope < 0.0 && best.slope > 0.0 || tried.slope > 0.0 && best.slope < 0.0;
        let span = tried.step - best.step;
        let secant = tried.step + tried.slope / (tried.slope - best.slope) * -span;
        let step = if tried.value > best.value {
            // Higher: a minimum lies between.
            self.bracketed = true;
            let cubic = best.step + cubic_ratio(best, tried, false) * span;
            let chord = (best.value - tried.value) / span;
            let parabola = best.step + best.slope / (chord + best.slope) / 2.0 * span;
            let nearer = (cubic - best.step).abs() <= (parabola - best.step).abs();
            if nearer { cubic } else { cubic + (parabola - cubic) / 2.0 }
        } else if turned {
            // Lower, and the slope has turned: it lies between as well.
            self.bracketed = true;
            let cubic = tried.step + cubic_ratio(tried, best, false) * -span;
            if (cubic - tried.step).abs() > (secant - tried.step).abs() { cubic } else { secant }
        } else if tried.slope.abs() < best.slope.abs() {
            // Lower, same sign, flatter: the cubic counts only if it has its minimum further on.
            let ratio = cubic_ratio(tried, best, true);
            let further = if tried.step > best.step { high } else { low };
            let cubic = if ratio < 0.0 { tried.step + ratio * -span } else { further };
            let cubic_is_nearer = (cubic - tried.step).abs() < (secant - tried.step).abs();
            if self.bracketed {
                let step = if cubic_is_nearer { cubic } else { secant };
                let most = tried.step + 0.66 * (other.step - tried.step);
                if tried.step > best.step { step.min(most) } else { step.max(most) }
            } else {
                let farther = (cubic - tried.step).abs() > (secant - tried.step).abs();
                (if farther { cubic } else { secant }).clamp(low.min(high), low.max(high))
            }
        } else if self.bracketed {
            // Lower, same sign, no flatter: the minimum is towards the other end.
            tried.step + cubic_ratio(tried, other, false) * (other.step - tried.step)
        } else if tried.step > best.step {
            high
        } else {
            low
        };

        if tried.value > best.value {
            self.other = tried;
        } else {
            if turned {
                self.other = best;
            }
            self.best = tried;
        }
        step
    }
}

/// Where between `near` (0) and `far` (1) the cubic through both values and slopes has its minimum; `clipped` is for one
/// that may have none, whose ratio is then of no use (not negative).
fn cubic_ratio(near: Point, far: Point, clipped: bool) -> f64 {
    let theta = 3.0 * (near.value - far.value) / (far.step - near.step) + near.slope + far.slope;
    let s = theta.abs().max(near.slope.abs()).max(far.slope.abs());
    let root = (theta / s).powi(2) - near.slope / s * (far.slope / s);
    let root = if clipped { root.max(0.0) } else { root };
    let gamma = s * root.sqrt() * if far.step < near.step { -1.0 } else { 1.0 };
    if clipped && gamma == 0.0 {
        return f64::INFINITY;
    }
    ((gamma - near.slope) + theta) / (((gamma - near.slope) + gamma) + far.slope)
}
