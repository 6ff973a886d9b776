//! A file of keys, one per line: a session id, which stands for all three parts, or a difference as
//! `verify --report` writes it. The whole file is checked before the first key is handed out, so
//! that a bad line stops the run before it has begun.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Lines};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use projector::change::require_session_id;
use projector::config::ConfigError;
use projector::part::Part;

use crate::items::Key;
use crate::verify::difference::reported_key;

/// The rest of a file.
pub(super) struct KeysFile {
    path: PathBuf,
    lines: Lines<BufReader<File>>,
    number: u64,
}

impl KeysFile {
    /// A file whose every line is a key.
    ///
    /// # Errors
    /// [`ConfigError`] if a line is none, or if it is no file that can be read twice. And if it
    /// cannot be read.
    pub(super) fn open(path: &Path) -> anyhow::Result<Self> {
        let mut file = Self::begin(path)?;
        while file.next()?.is_some() {}
        Self::begin(path)
    }

    fn begin(path: &Path) -> anyhow::Result<Self> {
        let cannot = || format!("cannot read {}", path.display());
        let file = File::open(path).with_context(cannot)?;
        if !file.metadata().with_context(cannot)?.is_file() {
            let problem = "is no file: it is read twice, first to check it";
            return Err(wrong(format!("{} {problem}", path.display())));
        }
        Ok(Self { path: path.to_owned(), lines: BufReader::new(file).lines(), number: 0 })
    }

    /// The keys of the next line that has any; `None` at the end.
    pub(super) fn next(&mut self) -> anyhow::Result<Option<Vec<Key>>> {
        for line in self.lines.by_ref() {
            self.number += 1;
            let place = || format!("{}, line {}", self.path.display(), self.number);
            let line = line.with_context(|| format!("cannot read {}", place()))?;
            if line.trim().is_empty() {
                continue;
            }
            let keys = keys_of(line.trim());
            return keys.map(Some).map_err(|why| wrong(format!("{}: {why}", place())));
        }
        Ok(None)
    }
}

fn wrong(problem: String) -> anyhow::Error {
    ConfigError { variable: "--keys", problem }.into()
}

/// The keys that a line stands for.
fn keys_of(line: &str) -> Result<Vec<Key>, String> {
    let (session_id, part) = if line.starts_with('{') {
        reported_key(line.as_bytes())?
    } else {
        (line.to_owned(), None)
    };
    if require_session_id(&session_id).is_err() {
        return Err("it is neither a session id nor a line of `verify --report`".to_owned());
    }
    let key = |part| (part, session_id.clone());
    Ok(part.map_or_else(|| Part::ALL.map(key).to_vec(), |part| vec![key(part)]))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use projector::config::ConfigError;
    use projector::part::Part;
    use tempfile::NamedTempFile;

    use super::{KeysFile, keys_of};

    fn file(text: &str) -> NamedTempFile {
        let mut file = NamedTempFile::new().expect("a file");
        file.write_all(text.as_bytes()).expect("a file");
        file
    }

    #[test]
    fn a_file_is_checked_as_a_whole_before_its_first_key() {
        let good = file("s-1\n\n  \n{\"session_id\":\"s-2\",\"part\":\"right\"}\r\ns-3");
        let mut keys = KeysFile::open(good.path()).expect("keys");
        let mut read = Vec::new();
        while let Some(of_line) = keys.next().expect("a line") {
            read.push(of_line);
        }
        let sessions: Vec<_> = read.iter().map(|keys| (keys.len(), keys[0].1.as_str())).collect();
        assert_eq!(sessions, [(3, "s-1"), (1, "s-2"), (3, "s-3")]);

        let bad = file("s-1\n\ntwo words\ns-3\n");
        let error = KeysFile::open(bad.path()).err().expect("a bad line");
        assert!(error.is::<ConfigError>(), "{error:#}");
        assert!(format!("{error:#}").contains(", line 3: it is neither"), "{error:#}");
        let folder = tempfile::tempdir().expect("a folder");
        let error = KeysFile::open(folder.path()).err().expect("a folder");
        assert!(error.is::<ConfigError>() && error.to_string().contains("is no file"), "{error:#}");
        KeysFile::open(&folder.path().join("none")).err().expect("nothing there");
    }

    #[test]
    fn a_line_is_a_session_or_a_difference() {
        let one = |part| Ok(vec![(part, "s-1".to_owned())]);
        let all = || Ok(Part::ALL.map(|part| (part, "s-1".to_owned())).to_vec());
        for (line, expected) in [
            ("s-1", all()),
            (r#"{"session_id":"s-1","part":"left"}"#, one(Part::Left)),
            (
                r#"{"detail":"x","kind":"extra","ours":"L/1","part":"session","session_id":"s-1","theirs":null}"#,
                one(Part::Session),
            ),
            (r#"{"session_id":"s-1","part":null}"#, all()),
            (r#"{"session_id":"s-1"}"#, all()),
            ("two words", Err("neither a session id nor")),
            ("-s", Err("neither a session id nor")),
            (r#"{"session_id":"../s"}"#, Err("neither a session id nor")),
            (r#"{"session_id":"s-1","part":"both"}"#, Err("part is none of")),
            (r#"{"part":"left"}"#, Err("missing field `session_id`")),
            (r#"{"session_id":"s-1""#, Err("not JSON with a session_id")),
        ] {
            match (keys_of(line), expected) {
                (Ok(keys), Ok(expected)) => assert_eq!(keys, expected, "{line}"),
                (Err(why), Err(expected)) => assert!(why.contains(expected), "{line}: {why}"),
                (keys, expected) => panic!("{line}: {keys:?}, not {expected:?}"),
            }
        }
    }
}
