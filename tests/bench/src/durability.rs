//! What fsync and full-page writes cost us. Every other part runs with both.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use testkit::emulator::event;
use testkit::services::{Stores, service};
use testkit::sql::Client;

use crate::function::records;
use crate::measure::{median, ratios};
use crate::report::Section;
use crate::servers;

/// Records per batch, and how many batches each of the two gets.
const BATCHES: [(usize, usize); 4] = [(1, 300), (100, 60), (1_000, 20), (10_000, 6)];

/// Sees to it that the database is as durable as one in use.
///
/// # Errors
/// If it is not: then every figure would flatter whoever commits often.
pub(crate) async fn require() -> anyhow::Result<()> {
    let mut connection = Client::connect(&service("DATABASE_URL")).await;
    for setting in ["fsync", "full_page_writes"] {
        let value = show(&mut connection, setting).await;
        ensure!(
            value == "on",
            "{setting} is {value}: start the database with `scripts/with-services --durable`"
        );
    }
    Ok(())
}

async fn show(connection: &mut Client, setting: &str) -> String {
    connection.ask(&format!("SELECT current_setting('{setting}')")).await
}

/// Turns both on or off for the whole server, and waits until that counts.
async fn set(connection: &mut Client, on: bool) -> anyhow::Result<()> {
    let value = if on { "on" } else { "off" };
    for setting in ["fsync", "full_page_writes"] {
        connection.run(&format!("ALTER SYSTEM SET {setting} = {value}")).await;
    }
    connection.ask("SELECT pg_reload_conf()").await;
    for _ in 0..200 {
        if show(connection, "full_page_writes").await == value {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    anyhow::bail!("PostgreSQL does not take full_page_writes = {value}")
}

/// Rates of one batch size with both on, and with both off, in turns.
async fn rates(size: usize, batches: usize) -> anyhow::Result<(Vec<f64>, Vec<f64>)> {
    let stores = Stores::fresh().await;
    let mut connection = stores.connect().await;
    let mut function = servers::function(servers::projector()?, &stores, None).await?;
    let (mut with, mut without) = (Vec::new(), Vec::new());
    let turns = batches.min(6);
    let mut next = 0;
    // The first turn of each is not counted: it connects, and plans its statements.
    for turn in 0..2 * (turns + 1) {
        let durable = turn % 2 == 0;
        set(&mut connection, durable).await?;
        for _ in 0..(batches / turns) {
            let records = records(next, size);
            next += size.max(3);
            let event = event(records.iter().map(|record| record.json.as_str()));
            let answered = function.invoke(event.into()).await?;
            let rate = size as f64 / answered.duration.as_secs_f64();
            if turn >= 2 {
                if durable { &mut with } else { &mut without }.push(rate);
            }
        }
    }
    function.stop().await?;
    Ok((with, without))
}

/// Measures batches of all sizes.
///
/// # Errors
/// If PostgreSQL refuses, or the function fails.
pub(crate) async fn measure(quick: bool) -> anyhow::Result<Section> {
    let mut line = String::new();
    let mut measured = Ok(());
    for (size, batches) in BATCHES {
        let batches = if quick { (batches / 3).max(4) } else { batches };
        match rates(size, batches).await {
            Ok((with, without)) => {
                let (slow, fast) = (median(with.iter().copied()), median(without.iter().copied()));
                let cost = 100.0 * (1.0 - median(ratios(&with, &without)));
                let separator = if line.is_empty() { "" } else { "; " };
                write!(
                    line,
                    "{separator}{cost:.0} % in batches of {size} ({slow:.0} records/s with them, \
                        {fast:.0} without)"
                )?;
            }
            Err(error) => measured = Err(error),
        }
    }
    let mut connection = Client::connect(&service("DATABASE_URL")).await;
    set(&mut connection, true).await.context("fsync stays off")?;
    measured?;
    Ok(Section {
        order: 4,
        title: "What a durable database costs".to_owned(),
        text: format!(
            "fsync and full-page writes take this share of the function's rate, without objects: \
                {line}.\n"
        ),
        aims: Vec::new(),
        figures: Vec::new(),
        plot: None,
    })
}
