//! Parquet and Arrow, written by their own library and read by ours; vectors the other way round.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{Float32Type, Int8Type, Int32Type, Int64Type};
use arrow_array::{
    Array, ArrayRef, BooleanArray, DictionaryArray, Float64Array, Int64Array, ListArray, RecordBatch,
    StringArray,
};
use llm2vec::format::input::{self, Reading, Record};
use llm2vec::format::output::{Output, OutputDtype};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::json;

use super::{folder, refused};

/// Two thousand rows and more, so that there are several batches; a text of a dictionary, and one that is null.
fn table(rows: usize) -> RecordBatch {
    let texts: StringArray = (0..rows).map(|i| Some(format!("text \"{i}\", né"))).collect();
    let kinds: DictionaryArray<Int32Type> =
        (0..rows).map(|i| if i % 3 == 0 { "query" } else { "passage" }).collect();
    let holes: StringArray = (0..rows).map(|i| (i != 1).then(|| format!("hole {i}"))).collect();
    let words =
        ListArray::from_iter_primitive::<Int64Type, _, _>((0..rows).map(|i| Some(vec![Some(i as i64)])));
    let columns: [(&str, ArrayRef); 7] = [
        ("id", Arc::new(Int64Array::from_iter_values(0..rows as i64))),
        ("text", Arc::new(texts)),
        ("instruction", Arc::new(kinds)),
        ("hole", Arc::new(holes)),
        ("flag", Arc::new(BooleanArray::from_iter((0..rows).map(|i| Some(i % 2 == 0))))),
        ("score", Arc::new(Float64Array::from_iter_values((0..rows).map(|i| i as f64 / 4.0)))),
        ("numbers", Arc::new(words)),
    ];
    RecordBatch::try_from_iter(columns).unwrap()
}

/// The table as Parquet, as an Arrow file and as an Arrow stream, under names that say nothing.
fn written(dir: &Path, batch: &RecordBatch) -> [String; 3] {
    let path = |name: &str| dir.join(name).to_str().unwrap().to_string();
    let [parquet, file, stream] = ["one", "two", "three"].map(path);
    let mut writer = ArrowWriter::try_new(File::create(&parquet).unwrap(), batch.schema(), None).unwrap();
    writer.write(batch).unwrap();
    writer.close().unwrap();
    let mut writer =
        arrow_ipc::writer::FileWriter::try_new(File::create(&file).unwrap(), &batch.schema()).unwrap();
    writer.write(batch).unwrap();
    writer.finish().unwrap();
    let mut writer =
        arrow_ipc::writer::StreamWriter::try_new(File::create(&stream).unwrap(), &batch.schema()).unwrap();
    writer.write(batch).unwrap();
    writer.finish().unwrap();
    [parquet, file, stream]
}

#[test]
fn tables_are_read_by_their_content() {
    let (dir, batch) = (folder(), table(2500));
    for path in written(dir.path(), &batch) {
        let records = input::open(&path, &Reading::default()).unwrap();
        let records: Vec<Record> = records.collect::<Result<_, _>>().unwrap();
        assert_eq!(records.len(), 2500, "{path}");
        for (i, record) in records.iter().enumerate() {
            let kind = if i % 3 == 0 { "query" } else { "passage" };
            assert_eq!(
                (record.text.as_str(), record.instruction.as_deref()),
                (format!("text \"{i}\", né").as_str(), Some(kind))
            );
            assert_eq!(record.id, Some(json!(i)));
        }
        let column = |name: &str| Reading { format: None, text_column: Some(name.into()) };
        let mut holes = input::open(&path, &column("hole")).unwrap();
        assert_eq!(holes.next().unwrap().unwrap().text, "hole 0");
        refused(holes.next().unwrap(), &[path.as_str(), "row 2", "\"hole\""]);
        refused(
            input::open(&path, &column("sentence")),
            &["\"sentence\"", "\"text\"", "\"hole\"", "\"score\""],
        );
        // Cut short, it is damaged and said to be.
        let bytes = std::fs::read(&path).unwrap();
        let short = dir.path().join("short");
        std::fs::write(&short, &bytes[..bytes.len() / 2]).unwrap();
        let all = input::open(short.to_str().unwrap(), &Reading::default());
        refused(all.and_then(|records| records.collect::<Result<Vec<_>, _>>()), &["short", "damaged"]);
    }
}

/// Rows, names and scales of every type, by Parquet's own reader.
#[test]
fn vectors_become_a_table() {
    let rows: Vec<f32> = (0..40).map(|i| (i as f32 - 20.0) / 8.0).collect();
    for dtype in
        [OutputDtype::F32, OutputDtype::F16, OutputDtype::I8, OutputDtype::Binary, OutputDtype::Ubinary]
    {
        let dir = folder();
        let path = dir.path().join("v.parquet");
        let mut output = Output::create(path.to_str().unwrap(), 8, dtype).unwrap();
        for (i, row) in rows.chunks(8).enumerate() {
            let id = [json!("first"), json!(7)].get(i).cloned();
            output.write_vector(id.as_ref(), row).unwrap();
        }
        assert!(!path.exists());
        assert_eq!(output.finish().unwrap(), 5);
        let reader =
            ParquetRecordBatchReaderBuilder::try_new(File::open(&path).unwrap()).unwrap().build().unwrap();
        let batches: Vec<RecordBatch> = reader.collect::<Result<_, _>>().unwrap();
        let [batch] = batches.as_slice() else { panic!("one batch was wanted") };
        let index = batch.column_by_name("index").unwrap().as_primitive::<Int64Type>();
        assert_eq!(index.values().to_vec(), [0, 1, 2, 3, 4]);
        let id = batch.column_by_name("id").unwrap().as_string::<i32>();
        assert_eq!((id.value(0), id.value(1), id.is_null(2)), ("first", "7", true));
        let list = batch.column_by_name("embedding").unwrap().as_fixed_size_list();
        assert_eq!(list.len(), 5);
        match dtype {
            OutputDtype::F32 => {
                assert_eq!(list.values().as_primitive::<Float32Type>().values().to_vec(), rows)
            }
            OutputDtype::I8 => {
                let scale = batch.column_by_name("scale").unwrap().as_primitive::<Float32Type>();
                let numbers = list.values().as_primitive::<Int8Type>().values().to_vec();
                for (i, (number, wanted)) in numbers.iter().zip(&rows).enumerate() {
                    let step = scale.value(i / 8);
                    assert!((f32::from(*number) * step - wanted).abs() <= 0.5001 * step);
                }
            }
            OutputDtype::F16 => assert_eq!(list.value_length(), 8),
            OutputDtype::Binary | OutputDtype::Ubinary => assert_eq!(list.value_length(), 1),
        }
    }
    let dir = folder();
    let path = dir.path().join("v.parquet");
    let mut output = Output::create(path.to_str().unwrap(), 8, OutputDtype::F32).unwrap();
    refused(output.write_rows(&[f32::NAN; 8]), &["row 0, column 0"]);
    drop(output);
    assert_eq!(super::file_names(dir.path()), [""; 0]);
    let words = Output::of_blocks(path.to_str().unwrap(), 8, OutputDtype::F32);
    refused(words.map(|_| ()), &["v.parquet", "tokens or words"]);
}
