//! The last accesses to every byte of a region, kept where there were any.
//!
//! A page of bytes has one cell for each of its *grains*: so many neighbouring bytes have had the same accesses so far.
//! It begins with grains as large as the widest access, and takes smaller ones when a narrower access comes; what each
//! byte has seen is the same at every size.

use super::clock::{Clock, Touch, Who};
use crate::isa::operand::Proxy;
use std::ops::Range;

/// Bytes of a page, and of what [`parts`] gives.
pub const PAGE: usize = 1024;

const PART: usize = 256;

/// Bytes of the largest grain, as a power of two.
const COARSE: u32 = 4;

/// The same as bytes.
pub const GRAIN: usize = 1 << COARSE;

/// The last write, and the last reads of two warps. `many`: several lanes of that warp have read.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Cell {
    write: Touch,
    reads: [Touch; 2],
    many: [bool; 2],
}

impl Cell {
    #[inline]
    fn read(&mut self, touch: Touch) {
        let last = self.reads[0];
        if last.is_some() && last.same_warp(touch) {
            self.many[0] = last.time() == touch.time() && (self.many[0] || !last.same_lane(touch));
        } else {
            (self.reads[1], self.many[1]) = (last, self.many[0]);
            self.many[0] = false;
        }
        self.reads[0] = touch;
    }

    /// Whether a write races with nothing.
    #[inline]
    fn free(&self, who: &Who<'_>) -> bool {
        let mut reads = self.reads.iter().zip(self.many);
        !self.write.races(who, false) && !reads.any(|(read, many)| read.races(who, many))
    }
}

#[derive(Clone, Debug)]
struct Page {
    /// Bytes of a grain, as a power of two.
    grain: u32,
    cells: Vec<Cell>,
}

impl Page {
    fn new() -> Page {
        Page { grain: COARSE, cells: vec![Cell::default(); PAGE >> COARSE] }
    }

    fn refine(&mut self, grain: u32) {
        if grain == self.grain {
            return;
        }
        let each = 1 << (self.grain - grain);
        self.cells = self.cells.iter().flat_map(|c| std::iter::repeat_n(*c, each)).collect();
        self.grain = grain;
    }
}

/// The last accesses to the bytes of a region.
#[derive(Clone, Debug, Default)]
pub struct Races {
    pages: Vec<Option<Page>>,
}

impl Races {
    /// Forgets everything: nothing of before races with what comes.
    pub fn clear(&mut self) {
        self.pages.clear();
    }

    /// Bytes that were read, and that were written, however often.
    pub fn touched(&self) -> [u64; 2] {
        let mut bytes = [0; 2];
        for page in self.pages.iter().flatten() {
            for cell in &page.cells {
                bytes[0] += u64::from(cell.reads[0].is_some()) << page.grain;
                bytes[1] += u64::from(cell.write.is_some()) << page.grain;
            }
        }
        bytes
    }

    /// The last write to a byte.
    pub fn written(&self, at: usize) -> Option<Touch> {
        let page = self.pages.get(at / PAGE)?.as_ref()?;
        Some(page.cells[(at % PAGE) >> page.grain].write).filter(|write| write.is_some())
    }

    /// Notes nothing; gives an access to some of these bytes that a write, or else a read, may not meet: its place, and
    /// whether it is a write.
    pub fn conflict(&self, at: usize, bytes: usize, write: bool) -> Option<(usize, bool, Touch)> {
        let mut from = at;
        while from < at + bytes {
            let Some(page) = self.pages.get(from / PAGE).and_then(|p| p.as_ref()) else {
                from = (from / PAGE + 1) * PAGE;
                continue;
            };
            let cell = &page.cells[(from % PAGE) >> page.grain];
            if cell.write.is_some() {
                return Some((from, true, cell.write));
            }
            if write && cell.reads[0].is_some() {
                return Some((from, false, cell.reads[0]));
            }
            from = ((from >> page.grain) + 1) << page.grain;
        }
        None
    }

    /// The cells of bytes within one page.
    #[inline]
    fn cells(&mut self, at: usize, bytes: usize) -> &mut [Cell] {
        self.cells_of(at, (1, bytes))
    }

    /// The cells of so many accesses of bytes, one behind the other within one page.
    #[inline]
    fn cells_of(&mut self, at: usize, (n, bytes): (usize, usize)) -> &mut [Cell] {
        let page = at / PAGE;
        if self.pages.len() <= page {
            self.pages.resize(page + 1, None);
        }
        let page = self.pages[page].get_or_insert_with(Page::new);
        let grain = (at | bytes).trailing_zeros();
        if grain < page.grain {
            page.refine(grain);
        }
        let first = (at % PAGE) >> page.grain;
        &mut page.cells[first..first + ((n * bytes) >> page.grain)]
    }

    /// Notes a read; gives the write that it races with. The bytes are within a page.
    pub fn read(&mut self, at: usize, bytes: usize, who: &Who<'_>) -> Option<Touch> {
        let (touch, mut harmless) = (Touch::of(who), Touch::default());
        for cell in self.cells(at, bytes) {
            // Neighbouring grains mostly have the same history.
            if cell.write != harmless && cell.write.races(who, false) {
                return Some(cell.write);
            }
            harmless = cell.write;
            cell.read(touch);
        }
        None
    }

    /// Notes a write; gives the access that it races with. `same`: the bytes keep their values, so another write of
    /// them is no conflict.
    pub fn write(&mut self, at: usize, bytes: usize, who: &Who<'_>, same: bool) -> Option<Touch> {
        let (touch, mut harmless) = (Touch::of(who), Cell::default());
        for cell in self.cells(at, bytes) {
            if *cell != harmless {
                harmless = *cell;
                if !same && cell.write.races(who, false) {
                    return Some(cell.write);
                }
                for (read, many) in cell.reads.iter().zip(cell.many) {
                    if read.races(who, many) {
                        return Some(*read);
                    }
                }
            }
            cell.write = touch;
        }
        None
    }

    /// Notes a read or a write, whatever it races with.
    pub fn note(&mut self, at: usize, bytes: usize, who: &Who<'_>, write: bool) {
        let touch = Touch::of(who);
        for cell in self.cells(at, bytes) {
            match write {
                true => cell.write = touch,
                false => cell.read(touch),
            }
        }
    }

    /// Puts what is noted here onto `all`, which has no order to it; agents have new `numbers` there. Calls `put` with the
    /// bytes that were written here, and whether they were in `all` as well: if so, whether they hold the same. Calls `raced`
    /// with each conflict: the place, whether it is a write, that access and the other; its error ends this.
    pub fn onto<E>(
        self,
        all: &mut Races,
        numbers: &[u32],
        mut put: impl FnMut(Range<usize>, bool) -> bool,
        mut raced: impl FnMut(usize, bool, Touch, Touch) -> Result<(), E>,
    ) -> Result<(), E> {
        if all.pages.len() < self.pages.len() {
            all.pages.resize(self.pages.len(), None);
        }
        for (i, (ours, all)) in self.pages.into_iter().zip(&mut all.pages).enumerate() {
            let Some(mut ours) = ours else { continue };
            let all = all.get_or_insert_with(Page::new);
            let grain = ours.grain.min(all.grain);
            ours.refine(grain);
            all.refine(grain);
            for (j, (cell, other)) in ours.cells.iter().zip(&mut all.cells).enumerate() {
                let at = i * PAGE + (j << grain);
                let [read, write] = [cell.reads[0], cell.write].map(|t| t.renumbered(numbers));
                if read.is_some() && other.write.is_some() {
                    raced(at, false, read, other.write)?;
                }
                if write.is_some() && other.reads[0].is_some() {
                    raced(at, true, write, other.reads[0])?;
                }
                if write.is_some() && !put(at..at + (1 << grain), other.write.is_some()) {
                    raced(at, true, write, other.write)?;
                }
                other.write = if write.is_some() { write } else { other.write };
                other.reads[0] = if read.is_some() { read } else { other.reads[0] };
            }
        }
        Ok(())
    }

    /// Notes a write by an agent that was checked before: agent and time, instruction and strength.
    pub fn stamp(&mut self, at: usize, bytes: usize, agent: (u32, u32), of: (u32, bool)) {
        let touch = Touch::agent(agent, of);
        for (from, n) in parts(at, bytes) {
            self.cells(from, n).iter_mut().for_each(|c| c.write = touch);
        }
    }

    /// Notes reads of `bytes` each by so many neighbouring lanes, of places one behind the other in a page, while nothing is
    /// wrong with them and each place has one history; gives how many. `who`: the first. `harmless`: a write that no lane of
    /// the warp races with, or none.
    #[inline]
    pub fn read_lanes(
        &mut self,
        at: usize,
        (n, bytes): (usize, usize),
        mut who: Who<'_>,
        harmless: &mut Touch,
    ) -> usize {
        let (mut touch, cells) = (Touch::of(&who), self.cells_of(at, (n, bytes)));
        if cells.len() != n {
            return 0;
        }
        for (i, cell) in cells.iter_mut().enumerate() {
            if cell.write != *harmless {
                if cell.write.races(&who, false) {
                    return i;
                }
                *harmless = if cell.write.common(&who) { cell.write } else { *harmless };
            }
            cell.read(touch);
            (touch, who.thread) = (touch.behind(1), who.thread + 1);
        }
        n
    }

    /// The same for writes.
    #[inline]
    pub fn write_lanes(&mut self, at: usize, (n, bytes): (usize, usize), mut who: Who<'_>) -> usize {
        let (mut touch, cells) = (Touch::of(&who), self.cells_of(at, (n, bytes)));
        if cells.len() != n {
            return 0;
        }
        for (i, cell) in cells.iter_mut().enumerate() {
            if !cell.free(&who) {
                return i;
            }
            cell.write = touch;
            (touch, who.thread) = (touch.behind(1), who.thread + 1);
        }
        n
    }

    /// The cell of a grain whose bytes have one history.
    #[inline]
    fn whole(&mut self, at: usize) -> Option<&mut Cell> {
        let there = self.pages.get(at / PAGE).is_some_and(Option::is_some);
        if !there {
            self.cells(at, GRAIN);
        }
        let page = self.pages[at / PAGE].as_mut()?;
        if page.grain == COARSE { page.cells.get_mut((at % PAGE) >> COARSE) } else { None }
    }

    /// Notes a read of a grain, where nothing is wrong with it and its bytes have one history; whether it did. `harmless` as
    /// in [`Races::read_lanes`].
    #[inline]
    pub fn read_whole(&mut self, at: usize, (who, touch): (&Who<'_>, Touch), harmless: &mut Touch) -> bool {
        let Some(cell) = self.whole(at) else { return false };
        if cell.write != *harmless {
            if cell.write.races(who, false) {
                return false;
            }
            *harmless = if cell.write.common(who) { cell.write } else { *harmless };
        }
        cell.read(touch);
        true
    }

    /// The same for a write.
    #[inline]
    pub fn write_whole(&mut self, at: usize, (who, touch): (&Who<'_>, Touch)) -> bool {
        let Some(cell) = self.whole(at) else { return false };
        let free = cell.free(who);
        cell.write = if free { touch } else { cell.write };
        free
    }

    /// Notes nothing; whether a write of a grain is right, and its bytes have one history.
    #[inline]
    pub fn free_whole(&mut self, at: usize, who: &Who<'_>) -> bool {
        self.whole(at).is_some_and(|cell| cell.free(who))
    }

    /// Notes a write that was checked so.
    #[inline]
    pub fn stamp_whole(&mut self, at: usize, touch: Touch) {
        self.whole(at).into_iter().for_each(|cell| cell.write = touch);
    }

    /// Notes a read by the last of several lanes of a warp, of which the first has just read the same; whether that stands for
    /// all of them.
    pub fn read_alike(&mut self, at: usize, bytes: usize, last: &Who<'_>) -> bool {
        let cells = self.cells(at, bytes);
        let alike = cells.iter().all(|cell| cell.write.common(last));
        if alike {
            cells.iter_mut().for_each(|cell| cell.read(Touch::of(last)));
        }
        alike
    }

    /// Notes a read of the asynchronous proxy, of as many bytes as the largest grain has, where nothing is wrong with it and
    /// they have one history; whether it did. `harmless`: a write that the reader is known to see, or none.
    #[inline]
    pub fn read_grain(
        &mut self,
        at: usize,
        (who, touch): (&Who<'_>, Touch),
        proxy: Proxy,
        harmless: &mut Touch,
    ) -> bool {
        let Some(Some(page)) = self.pages.get_mut(at / PAGE) else { return false };
        let (true, Some(cell)) = (page.grain == COARSE, page.cells.get_mut((at % PAGE) >> COARSE)) else {
            return false;
        };
        if cell.write != *harmless {
            if cell.write.unfenced(who.clock, proxy) || cell.write.races(who, false) {
                return false;
            }
            *harmless = cell.write;
        }
        cell.read(touch);
        true
    }

    /// Notes a read of the asynchronous proxy; gives the write that it races with, or (true) cannot see yet.
    pub fn read_beside(
        &mut self,
        at: usize,
        bytes: usize,
        who: &Who<'_>,
        proxy: Proxy,
    ) -> Option<(Touch, bool)> {
        let (touch, mut harmless) = (Touch::of(who), Touch::default());
        for cell in self.cells(at, bytes) {
            if cell.write != harmless {
                if cell.write.unfenced(who.clock, proxy) {
                    return Some((cell.write, true));
                }
                if cell.write.races(who, false) {
                    return Some((cell.write, false));
                }
                harmless = cell.write;
            }
            cell.read(touch);
        }
        None
    }

    /// The same for a write; `proxy`: where it sees no more than that one does.
    pub fn write_beside(
        &mut self,
        at: usize,
        bytes: usize,
        who: &Who<'_>,
        proxy: Option<Proxy>,
    ) -> Option<(Touch, bool)> {
        let (touch, mut harmless) = (Touch::of(who), Cell::default());
        for cell in self.cells(at, bytes) {
            if cell.write != harmless.write {
                if proxy.is_some_and(|proxy| cell.write.unfenced(who.clock, proxy)) {
                    return Some((cell.write, true));
                }
                if cell.write.races(who, false) {
                    return Some((cell.write, false));
                }
                harmless.write = cell.write;
            }
            for (i, (read, many)) in cell.reads.into_iter().zip(cell.many).enumerate() {
                // Who is behind an agent's access is behind those before it.
                let behind = read.no_later(harmless.reads[i]) && !who.strong;
                if behind || (read, many) == (harmless.reads[i], harmless.many[i]) {
                    continue;
                }
                if read.races(who, many) {
                    return Some((read, false));
                }
                (harmless.reads[i], harmless.many[i]) = (read, many);
            }
            cell.write = touch;
        }
        None
    }

    /// Notes nothing; gives a write of these bytes that the asynchronous proxy cannot see yet.
    pub fn unfenced(&mut self, at: usize, bytes: usize, clock: &Clock, proxy: Proxy) -> Option<Touch> {
        let mut seen = Touch::default();
        for cell in self.cells(at, bytes) {
            // Neighbouring grains mostly have the same history.
            if cell.write != seen && cell.write.unfenced(clock, proxy) {
                return Some(cell.write);
            }
            seen = cell.write;
        }
        None
    }

    /// Notes nothing; gives an access of another block or of an agent that is not over as far as `clock` knows, and
    /// its place.
    pub fn foreign(&self, clock: &Clock) -> Option<(usize, Touch)> {
        let open = |touch: &Touch| match touch.by() {
            Ok((block, thread)) if touch.is_some() && block != clock.block => {
                touch.time() > clock.thread(block, thread)
            }
            Err(agent) => !clock.knows(agent, touch.time()),
            _ => false,
        };
        // Neighbouring grains mostly have the same history.
        let mut over = Cell::default();
        for (i, page) in self.pages.iter().enumerate() {
            let Some(page) = page else { continue };
            for (j, cell) in page.cells.iter().enumerate() {
                if (cell.write, cell.reads) != (over.write, over.reads) {
                    if let Some(touch) = [cell.write, cell.reads[0], cell.reads[1]].into_iter().find(open) {
                        return Some((i * PAGE + (j << page.grain), touch));
                    }
                    over = *cell;
                }
            }
        }
        None
    }
}

/// Splits bytes so that each part lies in one page; a report names the part.
pub fn parts(at: usize, bytes: usize) -> impl Iterator<Item = (usize, usize)> {
    let end = at + bytes;
    let mut from = at;
    std::iter::from_fn(move || {
        let to = (from / PART * PART + PART).min(end);
        let part = (from, to - from);
        from = to;
        (part.1 > 0).then_some(part)
    })
}
