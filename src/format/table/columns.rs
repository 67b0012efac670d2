//! Rows of Parquet and Arrow tables, as JSON objects: a batch of rows is held at a time. Columns of text, numbers, truth
//! values and lists of text are read, the others are passed over.

use std::fs::File;
use std::path::Path;

use arrow_array::cast::AsArray;
use arrow_array::{Array, ArrayRef, RecordBatch, RecordBatchReader, types};
use arrow_ipc::reader::{FileReader, StreamReader};
use arrow_schema::{ArrowError, DataType, SchemaRef};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::super::lines::Source;
use super::{Broken, csv::put};
use crate::error::{Error, Result, guarded};

/// Rows that are unpacked at a time.
const BATCH: usize = 1024;

type Batches = Box<dyn Iterator<Item = std::result::Result<RecordBatch, ArrowError>> + Send>;

/// A column of a batch; of a dictionary, with the place of each row's value.
struct Column {
    array: ArrayRef,
    places: Option<Vec<usize>>,
}

/// Reads rows.
pub(super) struct Columns {
    batches: Batches,
    batch: Vec<Column>,
    /// The next row of the batch, and how many it has.
    next: usize,
    rows: usize,
    /// The columns that can be read, in order.
    pub(super) columns: Vec<String>,
    /// The current row as a JSON object.
    pub(super) row: Vec<u8>,
    /// Its number, from 1.
    pub(super) number: u64,
}

impl Columns {
    /// Opens a file; `parquet`, or Arrow, of which a stream may come from a pipe.
    pub(super) fn open(path: &Path, parquet: bool, mut source: Source) -> Result<Columns> {
        let wrong = |what: String| Error::file(path, what);
        let whole = path.is_file() && !source.is_packed();
        let file = || match whole {
            true => File::open(path).map_err(|e| Error::io(path, e)),
            false => Err(wrong("is read from its end: a file was wanted, no pipe, and not packed".into())),
        };
        let damaged = |e: &dyn std::fmt::Display| wrong(format!("the table is damaged: {e}"));
        let (schema, batches): (SchemaRef, Batches) = if parquet {
            let file = file()?;
            let builder =
                guarded(|| ParquetRecordBatchReaderBuilder::try_new(file)).map_err(|e| damaged(&e))?;
            let schema = builder.schema().clone();
            let wanted = (0..schema.fields().len()).filter(|i| is_read(schema.field(*i).data_type()));
            let mask = ProjectionMask::roots(builder.parquet_schema(), wanted);
            let builder = builder.with_projection(mask).with_batch_size(BATCH);
            let reader = guarded(|| builder.build()).map_err(|e| damaged(&e))?;
            (reader.schema(), Box::new(reader))
        } else if source.peek(6, false).0.starts_with(b"ARROW1") {
            let file = file()?;
            let reader = guarded(|| FileReader::try_new_buffered(file, None)).map_err(|e| damaged(&e))?;
            (reader.schema(), Box::new(reader))
        } else {
            let reader = guarded(|| StreamReader::try_new(source, None)).map_err(|e| damaged(&e))?;
            (reader.schema(), Box::new(reader))
        };
        let fields = schema.fields().iter().filter(|field| is_read(field.data_type()));
        let columns: Vec<String> = fields.map(|field| field.name().clone()).collect();
        if let Some(twice) = columns.iter().enumerate().find(|(i, name)| columns[..*i].contains(name)) {
            return Err(wrong(format!("two columns are called {:?}; rename one", twice.1)));
        }
        Ok(Columns { batches, batch: Vec::new(), next: 0, rows: 0, columns, row: Vec::new(), number: 0 })
    }

    /// Reads one row; false behind the last.
    pub(super) fn read(&mut self) -> std::result::Result<bool, Broken> {
        self.number += 1;
        while self.next == self.rows {
            // The library panics on some damaged files.
            let batch = guarded(|| self.batches.next().transpose());
            let batch = batch.map_err(|e| Broken::Data(format!("the table is damaged: {e}")))?;
            let Some(batch) = batch else { return Ok(false) };
            (self.next, self.rows) = (0, batch.num_rows());
            let column = |name: &String| {
                let array = batch.column_by_name(name)?.clone();
                let places = array.as_any_dictionary_opt().map(|dictionary| dictionary.normalized_keys());
                Some(Column { array, places })
            };
            self.batch = self.columns.iter().filter_map(column).collect();
        }
        self.row.clear();
        self.row.push(b'{');
        for (name, Column { array, places }) in self.columns.iter().zip(&self.batch) {
            self.row.extend(if self.row.len() > 1 { &b","[..] } else { b"" });
            put(&mut self.row, name);
            self.row.push(b':');
            match places {
                Some(places) if !array.is_null(self.next) => {
                    value(&mut self.row, array.as_any_dictionary().values(), places[self.next]);
                }
                _ => value(&mut self.row, array, self.next),
            }
        }
        self.row.push(b'}');
        self.next += 1;
        Ok(true)
    }
}

fn is_text(kind: &DataType) -> bool {
    match kind {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => true,
        DataType::Dictionary(_, values) => is_text(values),
        _ => false,
    }
}

fn is_read(kind: &DataType) -> bool {
    match kind {
        DataType::Boolean | DataType::Float32 | DataType::Float64 => true,
        DataType::List(item) | DataType::LargeList(item) => is_text(item.data_type()),
        kind => is_text(kind) || kind.is_integer(),
    }
}

/// Appends element `i` of a column as JSON.
fn value(to: &mut Vec<u8>, column: &ArrayRef, i: usize) {
    if column.is_null(i) {
        return to.extend(b"null");
    }
    macro_rules! number {
        ($kind:ident) => {
            to.extend(column.as_primitive::<types::$kind>().value(i).to_string().as_bytes())
        };
    }
    match column.data_type() {
        DataType::Utf8 => put(to, column.as_string::<i32>().value(i)),
        DataType::LargeUtf8 => put(to, column.as_string::<i64>().value(i)),
        DataType::Utf8View => put(to, column.as_string_view().value(i)),
        DataType::Dictionary(..) => {
            let dictionary = column.as_any_dictionary();
            value(to, dictionary.values(), dictionary.normalized_keys()[i]);
        }
        DataType::List(_) => list(to, &column.as_list::<i32>().value(i)),
        DataType::LargeList(_) => list(to, &column.as_list::<i64>().value(i)),
        DataType::Boolean => to.extend(column.as_boolean().value(i).to_string().as_bytes()),
        DataType::Int8 => number!(Int8Type),
        DataType::Int16 => number!(Int16Type),
        DataType::Int32 => number!(Int32Type),
        DataType::Int64 => number!(Int64Type),
        DataType::UInt8 => number!(UInt8Type),
        DataType::UInt16 => number!(UInt16Type),
        DataType::UInt32 => number!(UInt32Type),
        DataType::UInt64 => number!(UInt64Type),
        DataType::Float32 => float(to, column.as_primitive::<types::Float32Type>().value(i).into()),
        DataType::Float64 => float(to, column.as_primitive::<types::Float64Type>().value(i)),
        _ => to.extend(b"null"),
    }
}

/// JSON has no NaN and no infinity.
fn float(to: &mut Vec<u8>, value: f64) {
    to.extend(serde_json::Value::from(value).to_string().as_bytes());
}

fn list(to: &mut Vec<u8>, items: &ArrayRef) {
    to.push(b'[');
    for i in 0..items.len() {
        to.extend(if i > 0 { &b","[..] } else { b"" });
        value(to, items, i);
    }
    to.push(b']');
}
