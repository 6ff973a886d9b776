//! `backfill completions` and `backfill man`: what a shell and `man` want to know of the command
//! line. Both print, and connect to nothing.

use crate::cli::{self, CompletionsArguments};
use crate::console;
use crate::outcome::Outcome;

/// Of a help that neither prints.
const WIDTH: usize = 100;

/// Prints the completion script of a shell.
pub(crate) fn completions(arguments: &CompletionsArguments) -> Outcome {
    print(&script(arguments.shell));
    Outcome::Done
}

fn script(shell: clap_complete::Shell) -> Vec<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut cli::command(WIDTH), "backfill", &mut script);
    script
}

/// Prints the manual page.
///
/// # Errors
/// None in practice: it is made in memory.
pub(crate) fn manual() -> anyhow::Result<Outcome> {
    print(&page()?);
    Ok(Outcome::Done)
}

/// The page of the program, and after it a section per command.
fn page() -> std::io::Result<Vec<u8>> {
    let mut cli = cli::command(WIDTH);
    cli.build();
    let mut page = Vec::new();
    clap_mangen::Man::new(cli.clone()).render(&mut page)?;
    sections(&cli, &mut page)?;
    Ok(page)
}

/// Each command, and after it those below it.
fn sections(parent: &clap::Command, page: &mut Vec<u8>) -> std::io::Result<()> {
    for command in parent.get_subcommands().filter(|command| command.get_name() != "help") {
        let man = clap_mangen::Man::new(command.clone());
        man.render_name_section(page)?;
        man.render_synopsis_section(page)?;
        man.render_description_section(page)?;
        man.render_options_section(page)?;
        sections(command, page)?;
    }
    Ok(())
}

fn print(text: &[u8]) {
    console::print(String::from_utf8_lossy(text).trim_end());
}

#[cfg(test)]
mod tests {
    use clap_complete::Shell;

    use super::{page, script};

    #[test]
    fn a_shell_and_man_know_every_command_and_its_flags() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let script = String::from_utf8(script(shell)).expect("text");
            assert!(script.contains("redrive") && script.contains("snapshot-time"), "{shell}");
        }
        let page = String::from_utf8(page().expect("a page")).expect("text");
        let below = "backfill\\-reconcile\\-start";
        for part in ["backfill\\-redrive", below, "snapshot\\-time", ".SH SYNOPSIS"] {
            assert!(page.contains(part), "{part}");
        }
    }
}
