//! One of something for each of a block's four projections, the merged matrices that adapters sit on.

/// Of qkv, o, gate_up and down: weights, products with A, gradients.
#[derive(Clone, Debug)]
pub struct Adapted<T> {
    /// of q, k, v
    pub qkv: T,
    /// of o
    pub o: T,
    /// of gate, up
    pub gate_up: T,
    /// of down
    pub down: T,
}

/// The checkpoint's matrices in each, one below the other.
pub const SEGMENTS: Adapted<usize> = Adapted { qkv: 3, o: 1, gate_up: 2, down: 1 };

impl<T> Adapted<T> {
    /// In the order of the fields.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        [&self.qkv, &self.o, &self.gate_up, &self.down].into_iter()
    }

    /// In the order of the fields.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        [&mut self.qkv, &mut self.o, &mut self.gate_up, &mut self.down].into_iter()
    }

    /// With the name of each field.
    pub fn named(&self) -> [(&'static str, &T); 4] {
        [("qkv", &self.qkv), ("o", &self.o), ("gate_up", &self.gate_up), ("down", &self.down)]
    }

    /// Something made of each, in the order of the fields.
    pub fn map<U>(&self, mut make: impl FnMut(&T) -> U) -> Adapted<U> {
        Adapted {
            qkv: make(&self.qkv),
            o: make(&self.o),
            gate_up: make(&self.gate_up),
            down: make(&self.down),
        }
    }
}
