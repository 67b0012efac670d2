//! Boxes of tensors, as the pieces of a bulk copy.

use super::context::{Context, Done, Run};
use crate::isa::copy::End;
use crate::isa::operand::{Rmw, Space, Src, Ty, lanes};
use crate::isa::space::{LOCAL_WINDOW, PARAM_WINDOW};
use crate::isa::tensor_map::TensorMap;
use crate::machine::flight::{Flight, Piece, Where};
use crate::machine::warp::Warp;
use crate::report::finding::{Fault, Kind};

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
        let bad = |kind: Kind, what: String| Err(self.bad(warp, lane, run.inst, (kind, what)));
        let wrong = |what: String| bad(Kind::Access, what);
        self.known(warp, run, coords, "a coordinate is")?;
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
                    let what = format!("out of bounds: a tensor map at {address:#x}, where no memory is");
                    return bad(Kind::OutOfBounds, what);
                }
            },
        };
        if !address.is_multiple_of(64) {
            let what = format!("misaligned: a tensor map at {address:#x}, a multiple of 64 was expected");
            return bad(Kind::Misaligned, what);
        }
        let Some(map) = found else {
            return wrong(format!("what is at {address:#x} is no tensor map, or a damaged one"));
        };
        if map.sizes.len() != coords.len() {
            let (has, given) = (map.sizes.len(), coords.len());
            return wrong(format!("{given} coordinates for a tensor map of {has} dimensions"));
        }
        let value = |s: &Src| i64::from(warp.look(run.frame, *s, &self.module.consts)[lane] as i32);
        let coords: Vec<i64> = coords.iter().map(value).collect();
        // An H200 answers anything else with an illegal instruction.
        let byte = coords[0] * map.element.size() as i64;
        if byte % 16 != 0 {
            let what = format!("misaligned: the first coordinate, {}, is byte {byte} of its row", coords[0]);
            return bad(Kind::Misaligned, format!("{what}, a multiple of 16 was expected"));
        }
        Ok((map, coords))
    }

    /// A box from global to shared memory, or (`store`) back.
    pub fn boxed(
        &mut self,
        warp: &Warp,
        run: &Run<'_>,
        lane: usize,
        (map, shared, coords): (u64, u64, &[Src]),
        (flight, store): (&mut Flight, bool),
    ) -> Done {
        let (map, coords) = self.map(warp, run, lane, map, coords)?;
        let (place, base) = self.end(warp, run, lane, Space::Cluster, shared, 128)?;
        flight.bytes = map.bytes();
        flight.reduce = flight.reduce.map(|(f, _)| (f, map.element.ty()));
        let known = match flight.reduce {
            Some((f, Ty::F32 | Ty::F64)) => f == Rmw::Add,
            Some((f, Ty::F16 | Ty::Bf16)) => matches!(f, Rmw::Add | Rmw::Min | Rmw::Max),
            _ => true,
        };
        if !known {
            let what = format!("a reduction that {:?} does not have", map.element);
            return Err(self.wrong(warp, run, lane, what));
        }
        let rows = if store { map.whole_chunks().rows(&coords) } else { map.rows(&coords) };
        let row_bytes = map.bytes() / rows.len();
        let mut region = Where::Local(0);
        for (row, begin, address, bytes) in rows {
            self.counts_global(run, Space::Global, address, bytes);
            let mut global = 0;
            if bytes > 0 {
                (region, global) = self.global(warp, run, lane, address)?;
            }
            // Chunks of 16 bytes are what swizzling moves; the array may begin or end within one.
            for chunk in (0..row_bytes).step_by(16) {
                for (from, to) in [(chunk, begin), (begin, begin + bytes), (begin + bytes, chunk + 16)] {
                    let (from, to) = (from.max(chunk), to.min(chunk + 16));
                    let inside = from >= begin && to <= begin + bytes;
                    if from >= to || store && !inside {
                        continue;
                    }
                    let (shared, bytes) = (map.swizzle.place(base + row + from), to - from);
                    let there = inside.then(|| global + from - begin);
                    flight.pieces.push(match there {
                        Some(to) if store => Piece { from: Some(shared), to, bytes },
                        from => Piece { from, to: shared, bytes },
                    });
                }
            }
        }
        match store {
            true => (flight.from, flight.to) = (place, vec![region]),
            false => (flight.from, flight.to) = (region, vec![place]),
        }
        Ok(())
    }

    /// `cp.async.bulk.prefetch`: moves nothing that could be seen, but keeps the rules of what it is a part of.
    pub fn prefetch(&mut self, warp: &Warp, run: &Run<'_>, from: &End, size: Option<Src>) -> Done {
        let (End::Global(addr) | End::Shared(addr) | End::Box(addr, _)) = from else { return Ok(()) };
        let addresses = self.addresses(warp, run, addr)?;
        self.known(warp, run, size.as_slice(), "its size is")?;
        for lane in lanes(run.exec) {
            if let End::Box(_, coords) = from {
                let (map, at) = self.map(warp, run, lane, addresses[lane], coords)?;
                for (_, _, address, bytes) in map.rows(&at) {
                    if bytes > 0 {
                        self.global(warp, run, lane, address)?;
                    }
                }
                continue;
            }
            let bytes =
                size.map_or(0, |s| warp.look(run.frame, s, &self.module.consts)[lane] as u32 as usize);
            if bytes == 0 || !bytes.is_multiple_of(16) {
                let what = format!("misaligned: a prefetch of {bytes} bytes, a multiple of 16 was expected");
                return Err(self.bad(warp, lane, run.inst, (Kind::Misaligned, what)));
            }
            let (place, at) = self.end(warp, run, lane, Space::Global, addresses[lane], 16)?;
            let found = self.region(&mut [], place).range(at as i64, bytes, false);
            found.map_err(|bad| self.bad(warp, lane, run.inst, bad))?;
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
                let what = format!("out of bounds: a box {} bytes before {name}", -at);
                Err(self.bad(warp, lane, run.inst, (Kind::OutOfBounds, what)))
            }
            Ok(_) | Err(_) => {
                let what = format!("out of bounds: a box at {address:#x}");
                Err(self.bad(warp, lane, run.inst, (Kind::OutOfBounds, what)))
            }
        }
    }
}
