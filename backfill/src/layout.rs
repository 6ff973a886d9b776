//! Text that fits a terminal: tables, and lines that break between words. Pure: the width is given.

/// Between two columns.
const GAP: usize = 2;

/// A table. Columns that are too wide break their cells between words; if that is not enough, each
/// row becomes a block of lines, headed by its first cell.
pub(crate) fn table(headings: &[&str], rows: &[Vec<String>], width: usize) -> String {
    let headings: Vec<String> = headings.iter().map(|heading| (*heading).to_owned()).collect();
    match column_widths(&headings, rows, width) {
        Some(widths) => {
            std::iter::once(&headings).chain(rows).map(|row| lines_of(row, &widths)).collect()
        }
        None => rows.iter().map(|row| block(&headings, row, width)).collect(),
    }
}

/// The widths with which the whole table fits; `None` if no column can give way any more.
fn column_widths(headings: &[String], rows: &[Vec<String>], width: usize) -> Option<Vec<usize>> {
    let cells_of = |column: usize| -> Vec<&str> {
        let all = std::iter::once(headings).chain(rows.iter().map(Vec::as_slice));
        all.map(|row| row[column].as_str()).collect()
    };
    let columns: Vec<Vec<&str>> = (0..headings.len()).map(cells_of).collect();
    let natural = |cells: &Vec<&str>| cells.iter().map(|cell| length(cell)).max().unwrap_or(0);
    let mut widths: Vec<usize> = columns.iter().map(natural).collect();
    let room = width.saturating_sub(GAP * headings.len().saturating_sub(1));
    while widths.iter().sum::<usize>() > room {
        // The column whose next step costs the fewest lines, and then the one that gives way most.
        let steps =
            columns.iter().zip(&widths).enumerate().filter_map(|(column, (cells, width))| {
                let narrower = narrower(cells, *width)?;
                let lines = height(cells, narrower) - height(cells, *width);
                Some((lines, usize::MAX - (width - narrower), column, narrower))
            });
        let (_, _, column, narrower) = steps.min()?;
        widths[column] = narrower;
    }
    Some(widths)
}

/// The next width below this one that its cells fill; `None` if a word would break.
fn narrower(cells: &[&str], width: usize) -> Option<usize> {
    let width = width.checked_sub(1)?;
    if cells.iter().any(|cell| longest_word(cell) > width) {
        return None;
    }
    let lines = cells.iter().flat_map(|cell| broken(cell, width, 0));
    lines.map(|line| length(&line)).max()
}

fn height(cells: &[&str], width: usize) -> usize {
    cells.iter().map(|cell| broken(cell, width, 0).len()).max().unwrap_or(0)
}

/// A row, as many lines high as its highest cell.
fn lines_of(row: &[String], widths: &[usize]) -> String {
    let cells: Vec<Vec<String>> =
        row.iter().zip(widths).map(|(cell, width)| broken(cell, *width, 0)).collect();
    let height = cells.iter().map(Vec::len).max().unwrap_or(0);
    let mut text = String::new();
    for index in 0..height {
        let line: Vec<String> = cells
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{:width$}", cell.get(index).map_or("", String::as_str)))
            .collect();
        text += line.join("  ").trim_end();
        text.push('\n');
    }
    text
}

fn block(headings: &[String], row: &[String], width: usize) -> String {
    let longest = headings.iter().skip(1).map(|heading| length(heading)).max().unwrap_or(0);
    let members = headings
        .iter()
        .zip(row)
        .skip(1)
        .map(|(heading, cell)| format!("  {heading:longest$}  {cell}"));
    let lines = row.first().cloned().into_iter().chain(members);
    lines.map(|line| fit(&line, width) + "\n").collect()
}

/// Breaks the lines that are too wide between words. What follows stands below the last column of
/// its line, if the line has columns (two spaces or more), or is indented.
pub(crate) fn fit(text: &str, width: usize) -> String {
    let lines = text.lines().flat_map(|line| broken(line, width, indent(line, width)));
    lines.collect::<Vec<_>>().join("\n")
}

/// Where the rest of a line that is too wide begins.
fn indent(line: &str, width: usize) -> usize {
    let characters: Vec<char> = line.chars().collect();
    let leading = characters.iter().take_while(|character| **character == ' ').count();
    let half = (width / 2).min(characters.len());
    let column = (leading + 3..=half)
        .rev()
        .find(|at| {
            let before = &characters[at - 2..*at];
            before == [' ', ' '] && characters.get(*at).is_some_and(|character| *character != ' ')
        })
        .unwrap_or(leading + 2);
    column.min(half)
}

/// A line as lines of at most this width, all but the first indented.
fn broken(line: &str, width: usize, indent: usize) -> Vec<String> {
    let width = width.max(indent + 1);
    let (mut lines, mut rest) = (Vec::new(), line.chars().collect::<Vec<_>>());
    while rest.len() > width {
        let begin = if lines.is_empty() {
            rest.iter().take_while(|character| **character == ' ').count()
        } else {
            indent
        };
        let at = break_before(&rest, begin, width);
        let after = rest.split_off(at);
        lines.push(rest.into_iter().collect::<String>().trim_end().to_owned());
        let after = after.into_iter().skip_while(|character| *character == ' ');
        rest = std::iter::repeat_n(' ', indent).chain(after).collect();
    }
    lines.push(rest.into_iter().collect());
    lines
}

/// Where to break: at a space, if possible not within `a command in backquotes`, which somebody
/// copies.
fn break_before(line: &[char], begin: usize, width: usize) -> usize {
    let quoted =
        |at: usize| line[..at].iter().filter(|character| **character == '`').count() % 2 == 1;
    let spaces = || (begin + 1..=width).rev().filter(|at| line[*at] == ' ');
    spaces().find(|at| !quoted(*at)).or_else(|| spaces().next()).unwrap_or(width)
}

fn length(text: &str) -> usize {
    text.chars().count()
}

fn longest_word(text: &str) -> usize {
    text.split(' ').map(length).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::{fit, length, table};

    const HEADINGS: [&str; 4] = ["TABLE", "ENABLED SINCE", "SHARDS", "READERS"];

    fn row(table: &str) -> Vec<String> {
        [table, "2026-10-24 20:00:00Z", "4 open, 22 closed", "1 mapping + backfill, limit 2"]
            .map(str::to_owned)
            .to_vec()
    }

    fn widest(text: &str) -> usize {
        text.lines().map(length).max().unwrap_or(0)
    }

    #[test]
    fn a_table_that_fits_has_a_line_per_row() {
        let text = table(&HEADINGS, &[row("sessions")], 100);
        let expected = "\
TABLE     ENABLED SINCE         SHARDS             READERS
sessions  2026-10-24 20:00:00Z  4 open, 22 closed  1 mapping + backfill, limit 2
";
        assert_eq!(text, expected);
    }

    #[test]
    fn cells_break_within_their_columns() {
        let expected = "\
TABLE     ENABLED     SHARDS   READERS
          SINCE
sessions  2026-10-24  4 open,  1 mapping + backfill,
          20:00:00Z   22       limit 2
                      closed
";
        assert_eq!(table(&HEADINGS, &[row("sessions")], 52), expected);
    }

    #[test]
    fn a_table_that_cannot_fit_becomes_blocks() {
        let expected = "\
sessions
  ENABLED SINCE  2026-10-24 20:00:00Z
  SHARDS         4 open, 22 closed
  READERS        1 mapping + backfill,
                 limit 2
";
        assert_eq!(table(&HEADINGS, &[row("sessions")], 38), expected);
    }

    #[test]
    fn no_line_is_wider_than_the_terminal() {
        let long = "x".repeat(300);
        for width in [40, 80, 100, 110] {
            let rows = [row("sessions"), row(&long), row(&format!("a {long} b"))];
            assert!(widest(&table(&HEADINGS, &rows, width)) <= width, "{width}");
            let prose = format!("  12 × why: {}{long} {long}", "some words ".repeat(30));
            assert!(widest(&fit(&prose, width)) <= width, "{width}");
        }
    }

    #[test]
    fn lines_break_between_words_and_below_their_last_column() {
        let text = fit("works  12 ms  a role that may read and list", 30);
        assert_eq!(text, "works  12 ms  a role that may\n              read and list");
        assert_eq!(fit("one two three", 8), "one two\n  three");
        assert_eq!(fit("  one two three", 11), "  one two\n    three");
        assert_eq!(fit("short\n\nlines stay", 80), "short\n\nlines stay");
    }

    #[test]
    fn a_command_in_backquotes_stays_on_one_line_if_it_fits() {
        let text = fit("to end it run `SELECT end(42)` now", 24);
        assert_eq!(text, "to end it run\n  `SELECT end(42)` now");
    }
}
