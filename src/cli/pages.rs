//! `llm2vec completions` and `llm2vec man`: what a shell and a reader of manuals want to know of the command.

use crate::cli::{Cli, prepared_command, print};
use crate::error::{Error, Result};
use clap::{Args, CommandFactory};
use clap_complete::Shell;
use std::path::PathBuf;

/// Print completions for a shell.
#[derive(Args)]
#[command(after_help = "\
Examples:
  llm2vec completions bash > ~/.local/share/bash-completion/completions/llm2vec
  llm2vec completions zsh  > ~/.zfunc/_llm2vec            # a folder of $fpath
  llm2vec completions fish > ~/.config/fish/completions/llm2vec.fish
")]
pub struct Completions {
    /// bash, zsh, fish, elvish or powershell
    #[arg(value_name = "SHELL", hide_possible_values = true)]
    shell: Shell,
}

impl Completions {
    /// Runs the command.
    pub fn run(self) -> Result<()> {
        let mut text = Vec::new();
        clap_complete::generate(self.shell, &mut prepared_command(Cli::command()), "llm2vec", &mut text);
        print(&String::from_utf8_lossy(&text))
    }
}

/// Print the manual's first page, or write all of its pages, one a subcommand.
#[derive(Args)]
#[command(after_help = "Examples:\n  llm2vec man | man -l -\n  llm2vec man -o ~/.local/share/man/man1")]
pub struct Man {
    /// Folder that gets llm2vec.1, llm2vec-encode.1 and the others; it must be there
    #[arg(short, long, env = "LLM2VEC_OUTPUT", value_name = "DIR")]
    output: Option<PathBuf>,
}

impl Man {
    /// Runs the command.
    pub fn run(self) -> Result<()> {
        let command = prepared_command(Cli::command());
        if let Some(dir) = self.output {
            return clap_mangen::generate_to(command, &dir).map_err(|e| Error::io(&dir, e));
        }
        let mut text = Vec::new();
        clap_mangen::Man::new(command).render(&mut text).map_err(|e| Error::io("stdout", e))?;
        print(&String::from_utf8_lossy(&text))
    }
}
