//! Vectors as a Parquet table: `index`, `id`, `embedding`, and `scale` of i8 rows.

use std::io;
use std::sync::Arc;

use arrow_array::builder::{Float32Builder, Int64Builder, StringBuilder};
use arrow_array::{
    ArrayRef, FixedSizeListArray, Float16Array, Float32Array, Int8Array, RecordBatch, UInt8Array,
};
use arrow_schema::{ArrowError, DataType, Field, Schema, SchemaRef};
use half::f16;
use parquet::arrow::ArrowWriter;
use parquet::file::properties::WriterProperties;
use serde_json::Value;
use tempfile::NamedTempFile;

use super::number::OutputDtype;

/// Bytes of numbers that are held before they are written as a row group.
const GROUP_BYTES: usize = 16 << 20;

/// A table being written.
pub(super) struct Table {
    writer: ArrowWriter<NamedTempFile>,
    schema: SchemaRef,
    item: Arc<Field>,
    width: usize,
    dtype: OutputDtype,
    index: Int64Builder,
    id: StringBuilder,
    scale: Float32Builder,
    /// Of the rows that are held, as the file of another kind has them.
    bytes: Vec<u8>,
    rows: u64,
}

impl Table {
    /// Rows of `width` numbers of a type. The list has a fixed size for those who read Arrow's schema of the file, any size for
    /// others.
    pub(super) fn new(file: NamedTempFile, width: usize, dtype: OutputDtype) -> io::Result<Table> {
        let kind = match dtype {
            OutputDtype::F32 => DataType::Float32,
            OutputDtype::F16 => DataType::Float16,
            OutputDtype::I8 | OutputDtype::Binary => DataType::Int8,
            OutputDtype::Ubinary => DataType::UInt8,
        };
        let item = Arc::new(Field::new("item", kind, false));
        let size = i32::try_from(width).map_err(io::Error::other)?;
        let mut fields = vec![
            Field::new("index", DataType::Int64, false),
            Field::new("id", DataType::Utf8, true),
            Field::new("embedding", DataType::FixedSizeList(item.clone(), size), false),
        ];
        if dtype == OutputDtype::I8 {
            fields.push(Field::new("scale", DataType::Float32, false));
        }
        let schema = Arc::new(Schema::new(fields));
        // Numbers of a model are as good as random: neither a dictionary nor packing makes them smaller.
        let properties = WriterProperties::builder().set_dictionary_enabled(false).build();
        let writer = ArrowWriter::try_new(file, schema.clone(), Some(properties))?;
        Ok(Table {
            writer,
            schema,
            item,
            width,
            dtype,
            index: Int64Builder::new(),
            id: StringBuilder::new(),
            scale: Float32Builder::new(),
            bytes: Vec::new(),
            rows: 0,
        })
    }

    /// Appends a row, whose numbers lie in these bytes.
    pub(super) fn push(&mut self, id: Option<&Value>, row: &[u8], scale: Option<f32>) -> io::Result<()> {
        self.index.append_value(self.rows as i64);
        match id {
            Some(Value::String(id)) => self.id.append_value(id),
            Some(other) => self.id.append_value(other.to_string()),
            None => self.id.append_null(),
        }
        scale.into_iter().for_each(|scale| self.scale.append_value(scale));
        self.bytes.extend_from_slice(row);
        self.rows += 1;
        if self.bytes.len() >= GROUP_BYTES { self.group() } else { Ok(()) }
    }

    /// Writes what is held as a row group.
    fn group(&mut self) -> io::Result<()> {
        let bytes = std::mem::take(&mut self.bytes);
        let numbers: ArrayRef = match self.dtype {
            OutputDtype::F32 => {
                Arc::new(Float32Array::from_iter_values(four(&bytes).map(f32::from_le_bytes)))
            }
            OutputDtype::F16 => Arc::new(Float16Array::from_iter_values(two(&bytes).map(f16::from_le_bytes))),
            OutputDtype::I8 | OutputDtype::Binary => {
                Arc::new(Int8Array::from_iter_values(bytes.iter().map(|byte| *byte as i8)))
            }
            OutputDtype::Ubinary => Arc::new(UInt8Array::from(bytes)),
        };
        let failed = |e: ArrowError| io::Error::other(e);
        let list = FixedSizeListArray::try_new(self.item.clone(), self.width as i32, numbers, None);
        let mut columns: Vec<ArrayRef> =
            vec![Arc::new(self.index.finish()), Arc::new(self.id.finish()), Arc::new(list.map_err(failed)?)];
        if self.dtype == OutputDtype::I8 {
            columns.push(Arc::new(self.scale.finish()));
        }
        let batch = RecordBatch::try_new(self.schema.clone(), columns).map_err(failed)?;
        self.writer.write(&batch)?;
        self.writer.flush()?;
        Ok(())
    }

    /// The whole file, not yet under its name.
    pub(super) fn finish(mut self) -> io::Result<NamedTempFile> {
        self.group()?;
        Ok(self.writer.into_inner()?)
    }
}

fn four(bytes: &[u8]) -> impl Iterator<Item = [u8; 4]> {
    bytes.chunks_exact(4).map(|b| [b[0], b[1], b[2], b[3]])
}

fn two(bytes: &[u8]) -> impl Iterator<Item = [u8; 2]> {
    bytes.chunks_exact(2).map(|b| [b[0], b[1]])
}
