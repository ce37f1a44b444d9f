//! Making the row groups of an object, with one thread or two. Rows are dealt out in parts, whole row groups mostly, so that each flow is fetched from
//! memory once; whoever has built the columns of a part leaves them for both to write, one chunk at a time. Whatever the threads do, the
//! bytes are the same.

use std::{
    collections::{BTreeMap, VecDeque},
    panic::resume_unwind,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    thread,
};

use parquet::{errors::ParquetError, file::writer::SerializedFileWriter};

use super::{
    chunk::{Chunk, Compressor},
    values::Column,
};

/// The columns of a row group.
pub(super) type Group = Vec<Column>;

/// What a crew does.
pub(super) struct Crew<'a, P, B, W> {
    /// Makes row groups of a part: one, mostly.
    build: B,
    /// Makes a column chunk: the number of its column comes first.
    write: W,
    compressor: &'a (dyn Fn() -> Result<Compressor, ParquetError> + Sync),
    state: Mutex<State<'a, P>>,
    /// Something was built, or nothing more will be.
    changed: Condvar,
}

/// What is done and what is not.
struct State<'a, P> {
    /// Parts whose columns nobody builds yet.
    parts: P,
    /// How many there were.
    begun: usize,
    /// How many of them are being built.
    building: usize,
    /// Columns that nobody writes yet, those of the first part first.
    columns: VecDeque<(Place, Column)>,
    /// Chunks of the parts that are not in the file yet.
    chunks: BTreeMap<usize, PartChunks>,
    /// The part that is next in the file.
    next: usize,
    file: &'a mut SerializedFileWriter<Vec<u8>>,
    /// One of the threads has failed.
    is_over: bool,
}

/// Where a column is.
#[derive(Clone, Copy)]
struct Place {
    part: usize,
    /// Row group of the part.
    group: usize,
    /// Column of the row group.
    number: usize,
}

/// Chunks of the row groups of a part.
struct PartChunks {
    groups: Vec<Vec<Option<Chunk>>>,
    missing: usize,
}

/// What a thread does next.
enum Task<T> {
    Build(usize, T),
    Write(Place, Column),
}

impl<'a, T, P, B, W> Crew<'a, P, B, W>
where
    T: Send,
    P: Iterator<Item = T> + Send,
    B: Fn(T) -> Vec<Group> + Sync,
    W: Fn(usize, Column, &mut Compressor) -> Result<Chunk, ParquetError> + Sync,
{
    /// For these parts of an object's rows, to be appended to a file.
    pub(super) fn new(
        parts: P,
        file: &'a mut SerializedFileWriter<Vec<u8>>,
        compressor: &'a (dyn Fn() -> Result<Compressor, ParquetError> + Sync),
        build: B,
        write: W,
    ) -> Self {
        let (columns, chunks) = (VecDeque::new(), BTreeMap::new());
        let state = State { parts, begun: 0, building: 0, columns, chunks, next: 0, file, is_over: false };
        Self { build, write, compressor, state: Mutex::new(state), changed: Condvar::new() }
    }

    /// Does it, with one thread or two.
    pub(super) fn run(&self, threads: usize) -> Result<(), ParquetError> {
        thread::scope(|scope| {
            let second = || thread::Builder::new().name("encode-second".to_owned()).spawn_scoped(scope, || self.work());
            // Without it the first one does it all.
            let second = if threads > 1 { second().ok() } else { None };
            let first = self.work();
            // What went wrong there is to be found where it would be found here.
            let second = second.map_or(Ok(()), |second| second.join().unwrap_or_else(|payload| resume_unwind(payload)));
            first.and(second)
        })
    }

    /// Until there is nothing left for a thread to do.
    fn work(&self) -> Result<(), ParquetError> {
        let mut others = StopOthers { crew: self, is_done: false };
        let mut compressor = (self.compressor)()?;
        while let Some(task) = self.next() {
            match task {
                Task::Build(part, rows) => self.built(part, (self.build)(rows)),
                Task::Write(place, column) => {
                    let chunk = (self.write)(place.number, column, &mut compressor)?;
                    self.written(place, chunk)?;
                }
            }
        }
        others.is_done = true;
        Ok(())
    }

    /// No column is left lying about while another part is begun: so not more than a part for each thread is in memory.
    fn next(&self) -> Option<Task<T>> {
        let mut state = self.lock();
        loop {
            if state.is_over {
                return None;
            }
            if let Some((place, column)) = state.columns.pop_front() {
                return Some(Task::Write(place, column));
            }
            if let Some(rows) = state.parts.next() {
                let part = state.begun;
                state.begun += 1;
                state.building += 1;
                return Some(Task::Build(part, rows));
            }
            if state.building == 0 {
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn built(&self, part: usize, groups: Vec<Group>) {
        let mut state = self.lock();
        state.building -= 1;
        let missing = groups.iter().map(Vec::len).sum();
        let chunks = groups.iter().map(|columns| columns.iter().map(|_| None).collect()).collect();
        state.chunks.insert(part, PartChunks { groups: chunks, missing });
        for (group, columns) in groups.into_iter().enumerate() {
            let placed = columns.into_iter().enumerate();
            state.columns.extend(placed.map(|(number, column)| (Place { part, group, number }, column)));
        }
        self.changed.notify_all();
    }

    fn written(&self, place: Place, chunk: Chunk) -> Result<(), ParquetError> {
        let mut state = self.lock();
        let Place { part, group, number } = place;
        if let Some(chunks) = state.chunks.get_mut(&part) {
            chunks.groups[group][number] = Some(chunk);
            chunks.missing -= 1;
        }
        state.append()
    }

    /// Nothing that is done under the lock leaves it half done.
    fn lock(&self) -> MutexGuard<'_, State<'a, P>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<P> State<'_, P> {
    /// Appends parts that are complete to the file, as far as it is their turn.
    fn append(&mut self) -> Result<(), ParquetError> {
        while let Some(first) = self.chunks.first_entry()
            && *first.key() == self.next
            && first.get().missing == 0
        {
            for chunks in first.remove().groups {
                let mut group = self.file.next_row_group()?;
                for (bytes, close) in chunks.into_iter().flatten() {
                    group.append_column(&bytes, close)?;
                }
                group.close()?;
            }
            self.next += 1;
        }
        Ok(())
    }
}

/// Lets nobody wait for a thread that has failed.
struct StopOthers<'a, 'b, P, B, W> {
    crew: &'b Crew<'a, P, B, W>,
    is_done: bool,
}

impl<P, B, W> Drop for StopOthers<'_, '_, P, B, W> {
    fn drop(&mut self) {
        if !self.is_done {
            self.crew.state.lock().unwrap_or_else(PoisonError::into_inner).is_over = true;
            self.crew.changed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        panic::{AssertUnwindSafe, catch_unwind},
        sync::{Arc, mpsc},
        time::Duration,
    };

    use parquet::{basic::Compression, file::properties::WriterProperties, schema::parser::parse_message_type};

    use super::{
        super::{
            chunk::Says,
            labels::{self, Label, Labels},
        },
        *,
    };

    const PARTS: usize = 8;

    /// Row groups of one column, made by a crew: how many there are, or what went wrong. A part is built badly, a chunk is written badly.
    fn made(threads: usize, bad_part: usize, bad_chunk: i64) -> Result<usize, String> {
        let schema = Arc::new(parse_message_type("message m { optional int64 a; }").expect("a schema"));
        let mut file =
            SerializedFileWriter::new(Vec::new(), schema, Arc::new(WriterProperties::new())).expect("a file");
        let column = file.schema_descr().column(0);
        let compressor = || Compressor::new(Compression::UNCOMPRESSED, 0);
        let build = |part: usize| {
            assert!(part != bad_part, "a bug of ours");
            let label = i64::try_from(part).expect("small");
            vec![vec![Column::Labels(Labels::same(Some(Label::Long(label)), 9))]]
        };
        let write = |_, column_of: Column, compressor: &mut Compressor| {
            let Column::Labels(labels) = column_of else { panic!("labels were built") };
            let says = Says { bounds: true, pages: true };
            let chunk = labels::chunk(&column, &labels, compressor, says)?;
            let least = chunk.1.metadata.statistics().and_then(|s| s.min_bytes_opt()).map(<[u8]>::to_vec);
            if least == Some(bad_chunk.to_le_bytes().to_vec()) {
                return Err(ParquetError::General("it does not like it".to_owned()));
            }
            Ok(chunk)
        };
        let run = || Crew::new(0..PARTS, &mut file, &compressor, build, write).run(threads);
        let Ok(run) = catch_unwind(AssertUnwindSafe(run)) else { return Err("a panic".to_owned()) };
        run.map_err(|e| e.to_string())?;
        Ok(file.flushed_row_groups().len())
    }

    #[test]
    fn a_thread_that_fails_keeps_nobody_waiting_and_says_so() {
        let (done, waiting) = mpsc::channel();
        thread::spawn(move || {
            for threads in [1, 2] {
                let none = PARTS + 1;
                assert_eq!(made(threads, none, -1), Ok(PARTS), "{threads} threads");
                for bad in 0..PARTS {
                    assert_eq!(made(threads, bad, -1), Err("a panic".to_owned()), "{threads} threads");
                    let refused = made(threads, none, i64::try_from(bad).expect("small"));
                    assert!(refused.is_err_and(|e| e.contains("does not like")), "{threads} threads");
                }
            }
            done.send(()).expect("somebody waits");
        });
        waiting.recv_timeout(Duration::from_secs(60)).expect("an end, and no failed thread");
    }
}
