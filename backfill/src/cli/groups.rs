//! The commands in groups, by what an operator wants to do. Pure. clap lists all commands under one
//! heading, so the list in `backfill --help` is made here.

use clap::Command;

use crate::layout;

/// THE list of groups: every command is in exactly one.
const GROUPS: [(&str, &[&str]); 6] = [
    ("See where things stand", &["doctor", "status", "check"]),
    ("Prepare the database", &["migrate"]),
    ("Close the gap", &["stream", "file", "merge", "repair", "reconcile"]),
    ("Prove that both sides are equal", &["verify", "ready"]),
    ("Fix what is left", &["redrive", "objects"]),
    ("Set up your shell", &["completions", "man"]),
];

/// The help of the program, with its commands in groups, for a terminal of this width.
pub(crate) fn template(cli: &Command, width: usize) -> String {
    format!(
        "{{before-help}}{{about-with-newline}}\n{{usage-heading}} {{usage}}\n\n{}\
         `backfill COMMAND --help` describes a command and lists its flags and settings.\n\n\
         Options:\n{{options}}{{after-help}}",
        list(cli, width)
    )
}

fn list(cli: &Command, width: usize) -> String {
    let longest = cli.get_subcommands().map(|command| command.get_name().len()).max();
    let longest = longest.unwrap_or(0);
    let mut text = String::new();
    for (heading, names) in GROUPS {
        text += &[heading, ":\n"].concat();
        for command in names.iter().filter_map(|name| cli.find_subcommand(name)) {
            let about = command.get_about().map(ToString::to_string).unwrap_or_default();
            let line =
                format!("  {:longest$}  {}", command.get_name(), about.trim_end_matches('.'));
            text += &layout::fit(&line, width);
            text.push('\n');
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{GROUPS, list};
    use crate::cli::command;

    #[test]
    fn every_command_is_in_exactly_one_group() {
        let mut grouped: Vec<&str> =
            GROUPS.iter().flat_map(|(_, names)| names.iter().copied()).collect();
        let cli = command(100);
        let mut commands: Vec<&str> = cli.get_subcommands().map(clap::Command::get_name).collect();
        grouped.sort_unstable();
        commands.sort_unstable();
        assert_eq!(grouped, commands);
    }

    #[test]
    fn the_help_has_every_group_and_no_line_is_wider_than_the_terminal() {
        for width in [80, 110] {
            let help = command(width).render_long_help().to_string();
            for (heading, names) in GROUPS {
                let (_, after) = help.split_once(&format!("{heading}:\n")).expect(heading);
                let block = after.split("\n\n").next().unwrap_or_default();
                for name in names {
                    assert!(block.contains(&format!("  {name} ")), "{name}: {help}");
                }
            }
            let cli = command(width);
            let wide = list(&cli, width);
            assert!(wide.lines().all(|line| line.chars().count() <= width), "{wide}");
        }
    }
}
