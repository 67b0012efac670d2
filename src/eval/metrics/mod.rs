//! Measures of given labels, scores and assignments: equal to scikit-learn's.

pub mod accuracy;
pub mod average_precision;
pub mod vmeasure;
