//! Boxes of tensors, as the pieces of a bulk copy.

use super::access::{Run, Where};
use super::bulk::{End, Flight, Piece};
use super::memory::{LOCAL_WINDOW, PARAM_WINDOW};
use super::ptx::{Addr, Rmw, Space, Src, Ty};
use super::report::Fault;
use super::step::Context;
use super::tensor_map::TensorMap;
use super::warp::Warp;

impl Context<'_> {
    /// The tensor map at an address, and the lane's coordinates.
    fn map(
        &self,
        warp: &Warp,
        run: &Run<'_>,
        lane: usize,
        address: u64,
        coords: &[Src],
    ) -> Result<(TensorMap, Vec<i64>), Box<Fault>> {
        let wrong = |what: String| Err(self.wrong(warp, run, lane, what));
        self.known(warp, run, coords)?;
        let at = |base: &[u8], from: usize| base.get(from..from + 128).and_then(TensorMap::decode);
        let found = match address & 0xff << 56 {
            LOCAL_WINDOW => {
                return wrong(
                    "the tensor map is on the stack; the kernel's parameter must be const __grid_constant__"
                        .into(),
                );
            }
            PARAM_WINDOW => at(&warp.param[lane], address as u32 as usize),
            _ => match self.memory.find(address) {
                Some((region, from @ 0..)) => at(&self.memory.regions[region].data, from as usize),
                _ => {
                    return wrong(format!("out of bounds: a tensor map at {address:#x}, where no memory is"));
                }
            },
        };
        if !address.is_multiple_of(64) {
            return wrong(format!("misaligned: a tensor map at {address:#x}, a multiple of 64 was expected"));
        }
        let Some(map) = found else {
            return wrong(format!("what is at {address:#x} is no tensor map, or a damaged one"));
        };
        if map.sizes.len() != coords.len() {
            let (has, given) = (map.sizes.len(), coords.len());
            return wrong(format!("{given} coordinates for a tensor map of {has} dimensions"));
        }
        let value = |s: &Src| i64::from(warp.look(run.frame, *s, &self.module.consts)[lane] as i32);
        Ok((map, coords.iter().map(value).collect()))
    }

    /// A box from global to shared memory.
    pub fn load_box(
        &mut self,
        warp: &Warp,
        run: &Run<'_>,
        lane: usize,
        (map, to, coords): (u64, u64, &[Src]),
        flight: &mut Flight,
    ) -> Result<(), Box<Fault>> {
        let (map, coords) = self.map(warp, run, lane, map, coords)?;
        let zero = Addr { base: Src::Const(0), offset: 0 };
        let (place, base) = self.end(warp, run, lane, &End::Shared(zero), to, 128)?;
        (flight.to, flight.bytes) = (vec![place], map.bytes());
        let rows = map.rows(&coords);
        let row_bytes = map.bytes() / rows.len();
        for (row, begin, address, bytes) in rows {
            self.counts_global(run, &End::Global(zero), address, bytes);
            let global = match bytes {
                0 => 0,
                _ => {
                    let (region, at) = self.global(warp, run, lane, address)?;
                    flight.from = region;
                    at
                }
            };
            // Chunks of 16 bytes are what swizzling moves; the array may begin or end within one.
            for chunk in (0..row_bytes).step_by(16) {
                for (from, to) in [(chunk, begin), (begin, begin + bytes), (begin + bytes, chunk + 16)] {
                    let (from, to) = (from.max(chunk), to.min(chunk + 16));
                    if from < to {
                        let inside = from >= begin && to <= begin + bytes;
                        flight.pieces.push(Piece {
                            from: inside.then(|| global + from - begin),
                            to: map.swizzle.place(base + row + from),
                            bytes: to - from,
                        });
                    }
                }
            }
        }
        Ok(())
    }

    /// A box from shared to global memory.
    pub fn store_box(
        &mut self,
        warp: &Warp,
        run: &Run<'_>,
        lane: usize,
        (map, from, coords): (u64, u64, &[Src]),
        flight: &mut Flight,
    ) -> Result<(), Box<Fault>> {
        let (map, coords) = self.map(warp, run, lane, map, coords)?;
        let zero = Addr { base: Src::Const(0), offset: 0 };
        let (place, base) = self.end(warp, run, lane, &End::Shared(zero), from, 128)?;
        (flight.from, flight.bytes) = (place, map.bytes());
        flight.reduce = flight.reduce.map(|(f, _)| (f, map.element.ty()));
        let known = match flight.reduce {
            Some((f, Ty::F32 | Ty::F64)) => f == Rmw::Add,
            Some((f, Ty::F16 | Ty::Bf16)) => matches!(f, Rmw::Add | Rmw::Min | Rmw::Max),
            _ => true,
        };
        if !known {
            return Err(self.wrong(
                warp,
                run,
                lane,
                format!("a reduction that {:?} does not have", map.element),
            ));
        }
        for (row, begin, address, bytes) in map.rows(&coords).into_iter().filter(|r| r.3 > 0) {
            self.counts_global(run, &End::Global(zero), address, bytes);
            let (region, global) = self.global(warp, run, lane, address)?;
            flight.to = vec![region];
            let (mut at, end) = (begin, begin + bytes);
            while at < end {
                let next = (at / 16 * 16 + 16).min(end);
                let from = Some(map.swizzle.place(base + row + at));
                flight.pieces.push(Piece { from, to: global + at - begin, bytes: next - at });
                at = next;
            }
        }
        Ok(())
    }

    fn global(
        &self,
        warp: &Warp,
        run: &Run<'_>,
        lane: usize,
        address: u64,
    ) -> Result<(Where, usize), Box<Fault>> {
        match self.find(Space::Global, lane, address) {
            Ok((place, at)) if at >= 0 => Ok((place, at as usize)),
            Ok((Where::Global(region), at)) => {
                let name = &self.memory.regions[region].name;
                Err(self.wrong(warp, run, lane, format!("out of bounds: a box {} bytes before {name}", -at)))
            }
            Ok(_) | Err(_) => {
                Err(self.wrong(warp, run, lane, format!("out of bounds: a box at {address:#x}")))
            }
        }
    }
}
