//! The inputs of `file`: which files the paths of the command line stand for, and the plain bytes
//! of each.

use std::cell::Cell;
use std::collections::HashMap;
use std::fmt;
use std::fs::{self, File, Metadata};
use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::{Context as _, bail};
use flate2::read::MultiGzDecoder;

/// The path that stands for standard input.
const STANDARD_INPUT: &str = "-";

/// Something to read records from.
#[derive(Clone, Debug)]
pub(crate) enum Input {
    /// A file, and its size on the disk, compressed or not.
    File(PathBuf, u64),
    /// Another pipe than standard input.
    Pipe(PathBuf),
    Stdin,
}

impl fmt::Display for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path, _) | Self::Pipe(path) => path.display().fmt(f),
            Self::Stdin => f.write_str("standard input"),
        }
    }
}

/// What the paths of the command line stand for.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    pub(crate) inputs: Vec<Input>,
    /// What is in a folder and cannot be read, and why.
    pub(crate) unreadable: Vec<(PathBuf, String)>,
    /// The folders of the command line without any file.
    pub(crate) empty: Vec<PathBuf>,
    /// How many files and folders whose name begins with a dot were left out.
    pub(crate) hidden: u64,
    /// The folders that were listed, and whether a file is in them or below them. By device and
    /// inode: a link may lead back.
    folders: HashMap<(u64, u64), bool>,
}

impl Listing {
    /// The files that these paths stand for, in their order: a folder for all files in it and below
    /// it, by name, as Lambda's on-failure destination is a tree.
    ///
    /// # Errors
    /// If a path leads nowhere, so that a misspelt one is found before anything is written.
    pub(crate) fn of(paths: &[PathBuf]) -> anyhow::Result<Self> {
        let mut listing = Self::default();
        for path in paths {
            if path.as_os_str() == STANDARD_INPUT {
                if listing.inputs.iter().any(|input| matches!(input, Input::Stdin)) {
                    bail!("- (standard input) is given twice, and can be read once");
                }
                listing.inputs.push(Input::Stdin);
                continue;
            }
            let metadata =
                fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?;
            if metadata.is_dir() {
                let holds_files = listing
                    .folder(path, &metadata)
                    .with_context(|| format!("cannot read {}", path.display()))?;
                if !holds_files {
                    listing.empty.push(path.clone());
                }
            } else if metadata.is_file() {
                listing.inputs.push(Input::File(path.clone(), metadata.len()));
            } else {
                // As `<(aws s3 cp … -)`.
                listing.inputs.push(Input::Pipe(path.clone()));
            }
        }
        Ok(listing)
    }

    /// Lists a folder once, and returns whether it holds files, listed now or before.
    fn folder(&mut self, path: &Path, metadata: &Metadata) -> io::Result<bool> {
        let id = (metadata.dev(), metadata.ino());
        if let Some(holds_files) = self.folders.get(&id) {
            return Ok(*holds_files);
        }
        self.folders.insert(id, false);
        let mut holds_files = false;
        let mut below = fs::read_dir(path)?
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<Result<Vec<_>, _>>()?;
        below.sort();
        for path in below {
            if path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b".")) {
                self.hidden += 1;
                continue;
            }
            holds_files |= self.entry(&path).unwrap_or_else(|error| {
                self.unreadable.push((path, error.to_string()));
                true
            });
        }
        self.folders.insert(id, holds_files);
        Ok(holds_files)
    }

    /// Lists what is in a folder, and returns whether it is a file or holds files.
    fn entry(&mut self, path: &Path) -> io::Result<bool> {
        let metadata = fs::metadata(path)?;
        if metadata.is_dir() {
            return self.folder(path, &metadata);
        }
        if !metadata.is_file() {
            return Err(io::Error::other("neither a file nor a folder"));
        }
        self.inputs.push(Input::File(path.to_owned(), metadata.len()));
        Ok(true)
    }

    /// The bytes on the disk.
    pub(crate) fn bytes(&self) -> u64 {
        let bytes = |input: &Input| if let Input::File(_, bytes) = input { *bytes } else { 0 };
        self.inputs.iter().map(bytes).sum()
    }
}

/// Forms that are recognised, and not read.
const SIGNATURES: [(&[u8], &str); 7] = [
    (b"\xff\xfe", "UTF-16: convert it with `iconv -f UTF-16 -t UTF-8`"),
    (b"\xfe\xff", "UTF-16: convert it with `iconv -f UTF-16 -t UTF-8`"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd: decompress it with `zstd -d`"),
    (b"BZh", "compressed by bzip2: decompress it with `bunzip2`"),
    (b"\xfd7zXZ", "compressed by xz: decompress it with `unxz`"),
    (b"PK\x03\x04", "a ZIP archive: unpack it with `unzip`"),
    (b"\x1f\x8b", "compressed by gzip twice: decompress it once with `gunzip`"),
];
/// As many bytes as tell a form.
const SIGNATURE_BYTES: u64 = 8;

/// Counts what is read through it.
struct Counted<R> {
    inner: R,
    bytes: Rc<Cell<u64>>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.bytes.set(self.bytes.get() + count as u64);
        Ok(count)
    }
}

impl Input {
    /// Its bytes, decompressed. `bytes` counts what is read of it, compressed.
    ///
    /// # Errors
    /// If it cannot be opened, or is of a form that is not read.
    pub(crate) fn open(&self, bytes: &Rc<Cell<u64>>) -> anyhow::Result<Box<dyn BufRead>> {
        let inner: Box<dyn Read> = match self {
            Self::File(path, _) | Self::Pipe(path) => Box::new(File::open(path)?),
            Self::Stdin => Box::new(io::stdin()),
        };
        let counted = Counted { inner, bytes: Rc::clone(bytes) };
        let (beginning, raw) = peek(BufReader::with_capacity(1 << 16, counted))?;
        if !beginning.starts_with(b"\x1f\x8b") {
            return plain(&beginning, raw);
        }
        let unpacked = BufReader::with_capacity(1 << 18, MultiGzDecoder::new(raw));
        let (beginning, unpacked) =
            peek(unpacked).context("the gzip file is damaged or truncated at its beginning")?;
        plain(&beginning, unpacked)
    }
}

fn plain(beginning: &[u8], bytes: impl BufRead + 'static) -> anyhow::Result<Box<dyn BufRead>> {
    for (signature, form) in SIGNATURES {
        if beginning.starts_with(signature) {
            bail!("{form}");
        }
    }
    // UTF-16 or UTF-32 without a mark: half of the first letter is zero.
    if beginning.get(..2).is_some_and(|first| first.contains(&0)) {
        bail!("not UTF-8 text: convert it with `iconv -f UTF-16 -t UTF-8` if it is UTF-16");
    }
    Ok(Box::new(bytes))
}

/// A reader whose first bytes have been looked at.
type Peeked<R> = io::Chain<Cursor<Vec<u8>>, R>;

/// The first bytes, and all bytes.
fn peek<R: BufRead>(mut reader: R) -> io::Result<(Vec<u8>, Peeked<R>)> {
    let mut beginning = Vec::new();
    reader.by_ref().take(SIGNATURE_BYTES).read_to_end(&mut beginning)?;
    Ok((beginning.clone(), Cursor::new(beginning).chain(reader)))
}
