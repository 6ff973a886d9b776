//! Writes fixture streams: one record a line, one file a stream.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Parser;
use flate2::Compression;
use flate2::write::GzEncoder;
use testkit::generate::{self, Day};
use testkit::records::Record;

/// Writes a seeded day of foot measurements as fixture streams: sessions.jsonl and scans.jsonl.
#[derive(Parser)]
struct Arguments {
    /// The folder to write to; made if need be.
    #[arg(long)]
    out: PathBuf,
    /// How many sessions the day has; about 3.4 records each.
    #[arg(long, default_value_t = 100_000)]
    sessions: usize,
    /// The same seed gives the same files.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Let every scan carry a mesh of this many bytes.
    #[arg(long, default_value_t = 0)]
    mesh_bytes: usize,
    /// Leave the malformed records out.
    #[arg(long)]
    well_formed: bool,
    /// Write event.json too: the first scans as a Lambda event.
    #[arg(long)]
    event: bool,
    /// Compress with gzip.
    #[arg(long)]
    gzip: bool,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    fs::create_dir_all(&arguments.out)
        .with_context(|| format!("cannot make {}", arguments.out.display()))?;
    let (sessions, scans) = generate::day(Day {
        seed: arguments.seed,
        sessions: arguments.sessions,
        malformed: !arguments.well_formed,
        mesh_bytes: arguments.mesh_bytes,
    });
    write(&arguments, "sessions.jsonl", &sessions)?;
    write(&arguments, "scans.jsonl", &scans)?;
    if arguments.event {
        let path = arguments.out.join("event.json");
        fs::write(&path, generate::event(&scans))
            .with_context(|| format!("cannot write {}", path.display()))?;
        println!("{}: a Lambda event", path.display());
    }
    Ok(())
}

fn write(arguments: &Arguments, name: &str, records: &[Record]) -> anyhow::Result<()> {
    let name = if arguments.gzip { format!("{name}.gz") } else { name.to_owned() };
    let path: &Path = &arguments.out.join(name);
    let context = || format!("cannot write {}", path.display());
    let file = std::io::BufWriter::new(fs::File::create(path).with_context(context)?);
    if arguments.gzip {
        let mut encoder = GzEncoder::new(file, Compression::best());
        write_lines(&mut encoder, records).with_context(context)?;
        encoder.finish().and_then(|mut file| file.flush()).with_context(context)?;
    } else {
        let mut file = file;
        write_lines(&mut file, records).with_context(context)?;
        file.flush().with_context(context)?;
    }
    println!("{}: {} records", path.display(), records.len());
    Ok(())
}

fn write_lines(out: &mut impl std::io::Write, records: &[Record]) -> std::io::Result<()> {
    records.iter().try_for_each(|record| writeln!(out, "{}", record.json))
}
