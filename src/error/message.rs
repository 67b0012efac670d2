//! What an error says: text, in which a setting is named as such, so that whoever shows it can spell it as its own.

use std::fmt;

/// Makes [`Setting`] of rows `Variant "name"`: the field's name, and with it what the error shows.
macro_rules! settings {
    ($($variant:ident $name:literal)*) => {
        /// A setting that an error speaks of, by its name in this library.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[non_exhaustive]
        pub enum Setting {
            $(#[doc = concat!("`", $name, "`")] $variant,)*
        }

        impl Setting {
            /// All of them.
            pub const ALL: &[Setting] = &[$(Setting::$variant),*];

            /// Its name in this library: the field's, or the value's where one value is meant.
            pub fn name(self) -> &'static str {
                match self {
                    $(Setting::$variant => $name,)*
                }
            }
        }
    };
}

settings! {
    // Of `EncoderOptions`.
    Model "model"
    Adapters "adapters"
    Pooling "pooling"
    PoolOver "pool_over"
    Attention "attention"
    MaxLength "max_length"
    DocMaxLength "doc_max_length"
    Compat "compat"
    Dtype "dtype"
    Tokens "tokens"
    Layer "layer"
    Dimensions "dimensions"
    CheckFinite "check_finite"
    Device "device"
    // Of a text, and of what holds texts.
    Instruction "instruction"
    Empty "empty"
    InputFormat "input_format"
    TextColumn "text_column"
    // Of `TrainConfig`.
    TrainModel "model_name_or_path"
    TrainAdapters "peft_model_name_or_path"
    ContinueAdapter "continue_adapter"
    TrainFile "train_file"
    ValidationFile "validation_file"
    KeepBest "load_best_model_at_end"
    EarlyStopping "early_stopping_patience"
    Matryoshka "matryoshka_dims"
    Instructions "instructions"
    Strict "strict"
    OutputDir "output_dir"
    Batch "per_device_train_batch_size"
    Slices "slices"
    Accumulation "gradient_accumulation_steps"
    MaxSeqLength "max_seq_length"
    GradCache "grad_cache"
    GradientCheckpointing "gradient_checkpointing"
    // Of `TrainerOptions`.
    Resume "Existing::Resume"
    Overwrite "Existing::Overwrite"
    Source "source"
    Log "log"
    Plot "plot"
    Tensorboard "tensorboard"
    Transport "transport"
    // Of mining.
    Negatives "negatives"
    RangeMin "range_min"
    RangeMax "range_max"
    // Of a bench.
    Against "against"
    Python "python"
    Patience "patience"
    Seconds "seconds"
    Shape "shape"
    Layers "layers"
    Length "length"
    Recompute "recompute"
    Output "output"
}

/// How settings are spelled to a person; by default as in this library.
#[derive(Clone, Copy, Debug)]
pub struct Spelling(pub fn(Setting) -> String);

impl Default for Spelling {
    fn default() -> Spelling {
        Spelling(|setting| setting.name().into())
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Setting(Setting),
}

/// Text with settings in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message(Vec<Part>);

impl Message {
    /// Goes on with text, a setting, or another message.
    pub fn push(&mut self, part: impl Into<Message>) {
        self.0.extend(part.into().0);
    }

    /// The settings that it speaks of.
    pub fn settings(&self) -> impl Iterator<Item = Setting> {
        self.0.iter().filter_map(|part| match part {
            Part::Setting(setting) => Some(*setting),
            Part::Text(_) => None,
        })
    }

    /// The text, with each setting as `spelling` has it.
    pub fn spelled(&self, spelling: Spelling) -> String {
        let spell = |part: &Part| match part {
            Part::Text(text) => text.clone(),
            Part::Setting(setting) => spelling.0(*setting),
        };
        self.0.iter().map(spell).collect()
    }
}

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.spelled(Spelling::default()))
    }
}

impl From<String> for Message {
    fn from(text: String) -> Message {
        Message(vec![Part::Text(text)])
    }
}

impl From<&str> for Message {
    fn from(text: &str) -> Message {
        text.to_string().into()
    }
}

impl From<Setting> for Message {
    fn from(setting: Setting) -> Message {
        Message(vec![Part::Setting(setting)])
    }
}

/// A [`Message`] of its parts in order: `message!["try a smaller ", Setting::Tokens]`.
macro_rules! message {
    ($($part:expr),+ $(,)?) => {{
        let mut message = $crate::error::Message::default();
        $(message.push($part);)+
        message
    }};
}

pub(crate) use message;
