//! `postroom completions`: what a shell has to know to complete the command line.

use std::io::{self, Write};

use clap_complete::{Shell, generate};

/// What is asked.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The shell that shall complete
    shell: Shell,
    /// The program that shall be completed
    #[arg(value_enum, default_value_t)]
    program: Program,
}

/// The programs that people type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Program {
    #[default]
    Postroom,
    PostroomLda,
}

/// Prints the script; `command` is how a program is parsed. Exit 0.
pub fn print(
    arguments: &Arguments,
    command: impl FnOnce(Program) -> clap::Command,
    out: &mut impl Write,
) -> io::Result<u8> {
    let mut command = command(arguments.program);
    let name = command.get_name().to_owned();
    // It takes a writer that never fails for granted.
    let mut script = Vec::new();
    generate(arguments.shell, &mut command, name, &mut script);
    out.write_all(&script)?;
    Ok(0)
}
