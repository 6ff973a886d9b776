//! What holds of every block of the runbook and of every script that it calls, told from their text
//! alone: a fault of a kind that was found once is found wherever it comes back.

use super::blocks::{Block, DOCUMENTS, blocks, root, text};

/// The commands of a text, with their continuation lines.
fn commands(text: &str) -> Vec<String> {
    text.replace("\\\n", " ").split('\n').map(str::to_owned).collect()
}

/// Each block, and each script that blocks call, by a name for messages.
fn sources() -> Vec<(String, String)> {
    let scripts = ["functions", "service-functions", "compare-settings", "replicate-existing"];
    let scripts = scripts.map(|name| {
        let text =
            std::fs::read_to_string(root().join("infra/scripts").join(name)).expect("a script");
        (name.to_owned(), text)
    });
    let blocks = blocks();
    let named = blocks.iter().map(|block| (block.place(), quoted(block)));
    named.chain(scripts).collect()
}

/// A block's commands, each on one line: a query may go over several.
fn quoted(block: &Block) -> String {
    let mut folded = String::new();
    let mut in_quotes = None;
    for character in block.commands.chars() {
        match in_quotes {
            None if matches!(character, '\'' | '"') => in_quotes = Some(character),
            Some(quote) if quote == character => in_quotes = None,
            _ => {}
        }
        folded.push(if in_quotes.is_some() && character == '\n' { ' ' } else { character });
    }
    folded
}

/// With `--output text` the command line asks the query of each page of an answer by itself.
#[test]
fn no_query_over_all_results_runs_per_page() {
    let about_all = ["sort_by(", "max_by(", "min_by(", "length(", "sum(", "max(", "min(", "[-"];
    let mut asked = 0;
    for (name, text) in sources() {
        for command in commands(&text) {
            let paged = command.contains("aws ") && !command.contains("get-metric-statistics");
            if paged && command.contains("--output text") {
                asked += 1;
                for question in about_all {
                    assert!(!command.contains(question), "{name}: {command}");
                }
            }
        }
    }
    assert!(asked > 20, "{asked}");
}

/// A bucket that has a KMS key has it in every command that changes who writes or copies to it.
#[test]
fn the_key_of_a_bucket_goes_wherever_the_bucket_goes() {
    let pairs = [
        ("\"ArchiveBucket=$", "\"ArchiveKmsKeyArn="),
        ("\"ReplicateTo=$", "\"ReplicateToKmsKeyArn="),
        ("ParameterKey=BucketName,", "ParameterKey=KmsKeyArn,"),
    ];
    for (bucket, key) in pairs {
        let mut found = 0;
        for block in blocks() {
            for command in commands(&block.commands).iter().filter(|line| line.contains(bucket)) {
                assert!(command.contains(key), "{}: no {key}", block.place());
                found += 1;
            }
        }
        assert!(found > 0, "{bucket}");
    }
}

/// `--apply-immediately` applies whatever is pending, a restart too.
#[test]
fn what_is_pending_is_looked_at_before_it_is_applied() {
    let blocks = blocks();
    let mut found = 0;
    for (index, block) in blocks.iter().enumerate() {
        // An instance that is deleted right after may restart.
        let commands = commands(&block.commands);
        let applies = |line: &String| {
            line.contains("--apply-immediately") && !line.contains("--no-deletion-protection")
        };
        if let Some(at) = commands.iter().position(applies) {
            let before = commands[..at].iter().any(|line| line.starts_with("pending "));
            let earlier = blocks[..index].iter().rev().find(|earlier| earlier.on_aws);
            let in_the_block_before = earlier.is_some_and(|earlier| {
                earlier.section == block.section && earlier.commands.contains("pending ")
            });
            assert!(before || in_the_block_before, "{}", block.place());
            found += 1;
        }
    }
    assert_eq!(found, 3);
}

/// The policy that gives pods their security groups is in one place: two would be applied one over
/// the other, and a pod that lacks one of the groups reaches no database, or never starts.
#[test]
fn the_policy_of_security_groups_is_in_the_runbook_alone() {
    let kind = "kind: SecurityGroupPolicy";
    let blocks = blocks();
    let of_policy: Vec<&Block> =
        blocks.iter().filter(|block| block.commands.contains(kind)).collect();
    assert_eq!(of_policy.len(), 1);
    let commands = &of_policy[0].commands;
    for words in [
        "cluster.resourcesVpcConfig.clusterSecurityGroupId",
        "groupIds: [$shared, $(output measurements-tenant ReaderSecurityGroup)]",
        "--namespace \"$NAMESPACE\" apply",
        "podSelector: {}",
    ] {
        assert!(commands.contains(words), "{words}: {commands}");
    }
    for folder in ["base", "overlays/dark", "overlays/live", "overlays/no-host"] {
        let folder = root().join("infra/k8s").join(folder);
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            let text = std::fs::read_to_string(&path).expect("text");
            assert!(!text.contains(kind), "{}: it is in docs/service.md", path.display());
        }
    }
}

/// Without a context kubectl changes the current cluster, which may be the one that serves.
#[test]
fn whatever_changes_a_cluster_names_it() {
    let text = text(super::blocks::SERVICE).replace("\n   ", " ");
    let changes = ["apply", "delete", "patch", "scale", "annotate", "create", "rollout"];
    let mut found = 0;
    for line in text.lines() {
        for rest in line.split("kubectl ").skip(1) {
            let verb = rest.split_whitespace().find(|word| !word.starts_with('-'));
            let verb = verb.unwrap_or_default().trim_matches(|c: char| !c.is_alphanumeric());
            assert!(!changes.contains(&verb), "in_old or in_new: {line}");
        }
        found += line.matches("in_new ").count() + line.matches("in_old ").count();
    }
    assert!(found > 30, "{found}");
}

/// While the name moves no pipeline deploys an overlay: one of before would move the name.
#[test]
fn the_pipeline_is_kept_out_while_the_name_moves() {
    let blocks: Vec<Block> =
        blocks().into_iter().filter(|block| block.document == super::blocks::SERVICE).collect();
    let places = |words: &str| -> Vec<usize> {
        let found = blocks.iter().enumerate().filter(|(_, block)| block.commands.contains(words));
        found.map(|(place, _)| place).collect()
    };
    let (kept_out, let_in) =
        (places("disable-stage-transition"), places("enable-stage-transition"));
    assert_eq!((kept_out.len(), let_in.len()), (2, 2), "the switch, and the way back");
    // The gentle form takes the place of steps in between.
    let gentle = |place: &usize| blocks[*place].section.starts_with("The gentle form");
    let moves = [places("overlays/live"), places("overlays/dark")].concat();
    let moves: Vec<usize> = moves.into_iter().filter(|place| !gentle(place)).collect();
    assert_eq!(moves.len(), 3, "dark, live, and dark again");
    for place in moves {
        let kept_out = kept_out.iter().filter(|out| **out < place).count();
        let let_in = let_in.iter().filter(|again| **again < place).count();
        assert_eq!(kept_out, let_in + 1, "{}", blocks[place].place());
    }
}

/// A stack that is new has no values to keep: with `--parameter-overrides`, sam sends those alone,
/// and its creation fails.
#[test]
fn the_first_deployment_of_a_stack_takes_all_of_samconfig() {
    let mut deployed = std::collections::BTreeSet::new();
    for block in blocks() {
        for command in commands(&block.commands) {
            let Some(rest) = command.trim().strip_prefix("sam deploy --config-env ") else {
                continue;
            };
            let environment = rest.split(' ').next().expect("a name").to_owned();
            let is_first = deployed.insert(environment) && !rest.starts_with('"');
            let overrides = command.contains("--parameter-overrides");
            assert!(!(is_first && overrides), "{}: {command}", block.place());
        }
    }
    assert!(deployed.len() > 10, "{deployed:?}");
}

/// One mapping can stop while the other goes on.
#[test]
fn both_mappings_are_looked_at_after_each_change() {
    let mut found = 0;
    for block in blocks() {
        let changes = ["Mappings=enabled", "Mappings=disabled", "Mappings=absent"]
            .iter()
            .any(|change| block.commands.contains(change));
        if changes {
            let waits =
                block.commands.lines().any(|line| line.trim().starts_with("wait_for_mappings "));
            let absent = block.commands.contains("Mappings=absent");
            assert!(
                waits || (absent && block.commands.contains("\nmappings ")),
                "{}",
                block.place()
            );
            found += 1;
        }
        let alone = block.commands.contains("list-event-source-mappings")
            && block.commands.contains("projector-");
        assert!(!alone, "{}: `mappings` names both", block.place());
    }
    assert!(found > 6, "{found}");
}

/// The runbook without its blocks, and without what stands in backquotes.
fn prose() -> String {
    let text = DOCUMENTS.map(text).concat();
    let outside = text.split("```").step_by(2).collect::<String>();
    outside.split('`').step_by(2).collect()
}

/// The words of the glossary that confuse at night.
#[test]
fn the_runbook_speaks_plainly() {
    let prose = prose().to_lowercase();
    let prose = format!(" {} ", prose.split_whitespace().collect::<Vec<_>>().join(" "));
    let avoid = [
        "so many",
        "all the same",
        " mend ",
        "mended",
        "reckon",
        "set aside",
        "befell",
        "bring up",
    ];
    for word in avoid {
        assert!(!prose.contains(word), "{word:?}");
    }
    let meaning = "Everything created up to this time is in the restored database: the time of the \
        snapshot (RDS: OriginalSnapshotCreateTime), or, if the projector was behind then, the time \
        up to which it had applied.";
    let whole = DOCUMENTS.map(text).concat();
    let whole = whole.split_whitespace().collect::<Vec<_>>().join(" ");
    assert_eq!(whole.matches(meaning).count(), 2, "the one meaning of SNAPSHOT_TIME");
}

/// What the reference shows of `backfill check` is what the command that it shows would print.
#[test]
fn the_reference_asks_and_answers_of_one_time() {
    let reference = text("docs/reference.md");
    let whole = reference.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(whole.contains(
        "everything created up to this time is in the restored database: the time of the snapshot \
         (RDS: OriginalSnapshotCreateTime), or, if the projector was behind then, the time up to \
         which it had applied."
    ));
    let asked = whole.split("check --snapshot-time ").nth(1).expect("a command");
    let asked = asked.split_once('Z').expect("a time").0.replace('T', " ");
    let answer = whole.split("safe: every change since ").nth(1).expect("an answer");
    let (answered, rest) = answer.split_once("Z can be read").expect("a time");
    assert_eq!(answered, asked);
    // A stream keeps its records for a day.
    let until = rest.split("until ").nth(1).expect("an end").split_once('Z').expect("a time").0;
    assert_eq!(
        until.split_once(' ').map(|(_, time)| time),
        asked.split_once(' ').map(|(_, time)| time)
    );
}
