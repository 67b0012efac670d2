//! The macro behind the table of settings.

/// Makes [`TrainConfig`](super::TrainConfig) of rows
///
/// ```text
/// /// Documentation, which is the flag's help too.
/// flag(what clap's `arg` takes, or `skip` for a setting that only files have)
/// key: type = default, check;        or        key: type => [mntp, simcse, supervised], check;
/// ```
///
/// The key is the field and the JSON key. A check is a `Fn(&type, Stage) -> Verdict`.
macro_rules! settings {
    ($(
        $(#[$attribute:meta])*
        flag($($flag:tt)*)
        $key:ident: $type:ty $(= $default:expr)? $(=> $by_stage:expr)? $(, $check:expr)?;
    )*) => {
        /// The configuration of a run. What only other stages read keeps its default and does nothing.
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[cfg_attr(feature = "cli", derive(clap::Args))]
        #[serde(deny_unknown_fields)]
        pub struct TrainConfig {
            /// The stage.
            #[cfg_attr(feature = "cli", arg(skip = Stage::Mntp))]
            pub stage: Stage,
            $(
                $(#[$attribute])*
                #[cfg_attr(feature = "cli", arg($($flag)*))]
                pub $key: $type,
            )*
        }

        impl TrainConfig {
            /// The paper's settings of a stage (appendices D.1 and G.2, and the released files).
            pub fn new(stage: Stage) -> TrainConfig {
                TrainConfig { stage, $($key: { $($default)? $(stage.choose($by_stage))? },)* }
            }

            /// The first setting that makes no sense.
            pub fn validate(&self) -> std::result::Result<(), Invalid> {
                $($(
                    let verdict = $check(&self.$key, self.stage);
                    verdict.map_err(|what| Invalid { key: stringify!($key), what })?;
                )?)*
                Ok(())
            }
        }
    };
}

pub(super) use settings;
