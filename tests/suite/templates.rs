//! What the templates of `infra/` say. Both linters pass nonsense here and there; what a deployment
//! would show only in an account of its own is read off the templates.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use std::sync::LazyLock;

use projector::config;
use serde_json::{Value as Json, json};

mod alarms;
mod creation;
mod delivery;
pub(crate) mod deployed;
mod permissions;
mod reconcile;
mod releases;
mod stores;
mod tenant;

const TEMPLATES: [&str; 13] = [
    "data",
    "images",
    "database",
    "existing-database",
    "archive",
    "projector",
    "reconcile",
    "alarms",
    "tenant",
    "cache",
    "delivery",
    "dns-role",
    "fanout",
];

/// What the pipelines of `delivery.yaml` run.
const BUILDSPECS: [&str; 3] =
    ["infra/buildspec.yml", "infra/buildspec-projector.yml", "infra/buildspec-release.yml"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace")
}

/// The state machine of `reconcile.yaml`, with the names that the template puts in.
const STATES: &str = "infra/reconcile.asl.yaml";

/// All templates, the state machine, buildspecs and `samconfig.toml`, as AWS's own tools read
/// them: `!Ref x` is `{"Ref": "x"}`.
static FILES: LazyLock<Json> = LazyLock::new(|| {
    let script = "import json, pathlib, sys, tomlkit
from samcli.yamlhelper import yaml_parse
def read(path):
    text = pathlib.Path(path).read_text()
    return tomlkit.parse(text).unwrap() if path.endswith('.toml') else yaml_parse(text)
print(json.dumps({path: read(path) for path in sys.argv[1:]}))";
    let sam = Command::new("sh").args(["-c", "command -v sam"]).output().expect("a shell").stdout;
    let sam = String::from_utf8(sam).expect("a path");
    assert!(
        !sam.is_empty(),
        "sam is not on the PATH: run this with `make test` or `scripts/with-services --with-sam`"
    );
    let output = Command::new(Path::new(sam.trim()).with_file_name("python"))
        .args(["-c", script, "samconfig.toml", STATES])
        .args(BUILDSPECS)
        .args(TEMPLATES.map(|name| format!("infra/{name}.yaml")))
        .current_dir(root())
        .output()
        .expect("python runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
});

fn template(name: &str) -> &'static Json {
    &FILES[format!("infra/{name}.yaml")]
}

fn members(value: &Json) -> impl Iterator<Item = (&str, &Json)> {
    value.as_object().into_iter().flatten().map(|(name, value)| (name.as_str(), value))
}

fn names(value: &Json) -> BTreeSet<&str> {
    members(value).map(|(name, _)| name).collect()
}

/// The resources of a type, with the name of their template and their own.
fn resources(kind: &str) -> Vec<(String, Json)> {
    let mut found = Vec::new();
    for name in TEMPLATES {
        for (id, resource) in members(&template(name)["Resources"]) {
            if resource["Type"] == kind {
                found.push((format!("{name}.{id}"), resource.clone()));
            }
        }
    }
    assert!(!found.is_empty(), "no {kind}");
    found
}

/// Every value at any depth.
fn walk<'a>(value: &'a Json, visit: &mut impl FnMut(&'a Json)) {
    visit(value);
    match value {
        Json::Array(values) => values.iter().for_each(|value| walk(value, visit)),
        Json::Object(values) => values.values().for_each(|value| walk(value, visit)),
        _ => {}
    }
}

fn list(value: &Json) -> Vec<&Json> {
    value.as_array().map_or_else(|| vec![value], |values| values.iter().collect())
}

#[test]
fn every_parameter_says_what_it_is_and_what_it_takes() {
    for name in TEMPLATES {
        for (parameter, definition) in members(&template(name)["Parameters"]) {
            let place = format!("{name}.{parameter}");
            let description = definition["Description"].as_str().unwrap_or_default();
            assert!(description.len() > 8, "{place} has no description");
            let kind = definition["Type"].as_str().expect("a type");
            let bounded = ["AllowedPattern", "AllowedValues", "MinValue"]
                .iter()
                .any(|bound| definition.get(*bound).is_some());
            assert!(bounded || kind.contains("AWS::EC2::"), "{place} takes anything");
        }
        for (output, definition) in members(&template(name)["Outputs"]) {
            assert!(definition["Description"].is_string(), "{name}.{output} has no description");
        }
    }
}

#[test]
fn every_mapping_has_its_failure_settings() {
    let mappings = resources("AWS::Lambda::EventSourceMapping");
    assert_eq!(mappings.len(), 2);
    for (place, mapping) in &mappings {
        let properties = &mapping["Properties"];
        let expected = json!({
            "FunctionResponseTypes": ["ReportBatchItemFailures"],
            "BisectBatchOnFunctionError": true,
            "MaximumRetryAttempts": { "Ref": "MaximumRetryAttempts" },
            "MaximumRecordAgeInSeconds": { "Ref": "MaximumRecordAgeSeconds" },
            "DestinationConfig": { "OnFailure": { "Destination": { "Fn::GetAtt": ["FailureBucket", "Arn"] } } },
            "ParallelizationFactor": { "Ref": "ParallelizationFactor" },
            "BatchSize": { "Ref": "BatchSize" },
            "MaximumBatchingWindowInSeconds": { "Ref": "BatchingWindowSeconds" },
            // Without a release as it always was: the function itself.
            "FunctionName": { "Fn::If": ["HasRelease", { "Ref": "Alias" }, { "Ref": "Function" }] },
            // What the alarms of a mapping watch.
            "MetricsConfig": { "Metrics": ["EventCount"] },
        });
        for (name, value) in members(&expected) {
            assert_eq!(&properties[name], value, "{place}.{name}");
        }
    }
    // The linters do not look into these.
    for (place, function) in resources("AWS::Serverless::Function") {
        assert!(function["Properties"].get("Events").is_none(), "{place} has SAM events");
    }
    let parameters = &template("projector")["Parameters"];
    // A retry that never ends would hold a shard for a day, and a replay is older than any age.
    assert!(parameters["MaximumRetryAttempts"]["MinValue"].as_i64() >= Some(1));
    assert!(parameters["MaximumRetryAttempts"]["Default"].as_i64() >= Some(1));
    assert_eq!(parameters["MaximumRecordAgeSeconds"]["Default"], -1);
    // Whoever makes a mapping says where it begins.
    assert!(parameters["StartingPosition"].get("Default").is_none());
    assert_eq!(parameters["Mappings"]["Default"], "absent");
}

/// A stream that was turned off and on has another ARN. It replaces its mapping, and that one
/// begins where the new stream does; nothing else changes, and nobody imports the old ARN any more.
#[test]
fn a_new_stream_replaces_one_mapping_and_nothing_else() {
    let template = template("projector");
    for table in ["Sessions", "Scans"] {
        let parameter = format!("{table}StreamArn");
        let definition = &template["Parameters"][&parameter];
        assert_eq!(definition["Default"], "", "a stack that names no stream stays as it is");
        let pattern = definition["AllowedPattern"].as_str().expect("a pattern");
        let stream =
            "arn:aws:dynamodb:eu-central-1:123456789012:table/scans/stream/2026-11-25T08:00:00.123";
        assert!(matches(pattern, stream));
        assert!(!matches(pattern, "arn:aws:dynamodb:eu-central-1:123456789012:table/scans"));
        let named = json!({ "Fn::Not": [{ "Fn::Equals": [{ "Ref": parameter }, ""] }] });
        assert_eq!(template["Conditions"][format!("Names{table}Stream")], named);
        let mapping = &template["Resources"][format!("{table}Mapping")]["Properties"];
        let exported =
            json!({ "Fn::ImportValue": { "Fn::Sub": format!("${{DataStack}}-{parameter}") } });
        let condition = format!("Names{table}Stream");
        assert_eq!(
            mapping["EventSourceArn"],
            json!({ "Fn::If": [condition, { "Ref": parameter }, exported] })
        );
        // LATEST would miss what the new stream got before its mapping was there.
        assert_eq!(
            mapping["StartingPosition"],
            json!({ "Fn::If": [condition, "TRIM_HORIZON", { "Ref": "StartingPosition" }] })
        );
    }
    // One import of each ARN, the one above: any other would keep the export from changing.
    let mut imports = 0;
    walk(template, &mut |value| {
        let import = value["Fn::ImportValue"]["Fn::Sub"].as_str().unwrap_or_default();
        imports += usize::from(import.ends_with("StreamArn"));
    });
    assert_eq!(imports, 2);
    // No stack imports the id of a mapping, which a replacement changes.
    for (name, output) in members(&template["Outputs"]) {
        assert!(!name.ends_with("Mapping") || output.get("Export").is_none(), "{name}");
    }
}

#[test]
fn the_variables_are_those_that_the_projector_reads() {
    let template = template("projector");
    let variables = &template["Resources"]["Function"]["Properties"]["Environment"]["Variables"];
    let mut read: BTreeSet<&str> = config::VARIABLES.into_iter().collect();
    read.insert("RUST_LOG");
    assert_eq!(names(variables), read);
    let function = &template["Resources"]["Function"]["Properties"];
    assert_eq!(function["Runtime"], "provided.al2023");
    assert_eq!(function["Handler"], "bootstrap");
    assert_eq!(function["CodeUri"], "../target/lambda/projector/bootstrap.zip");
    assert!(
        function["Timeout"].as_i64() >= Some(180),
        "it waits 10 s, 25 s and 30 s, and a slow statement is tried again in pieces"
    );
    assert_eq!(function["ReservedConcurrentExecutions"], json!({ "Ref": "ReservedConcurrency" }));
    // The one is refused beside the other.
    assert_eq!(variables["DATABASE_AUTH"]["Fn::If"][0], "ByIam");
    assert_eq!(variables["DATABASE_SECRET_ARN"]["Fn::If"][0], "BySecret");
}

/// The suffixes that a template exports under its stack's name.
fn exports(name: &str) -> BTreeSet<String> {
    members(&template(name)["Outputs"])
        .filter_map(|(_, output)| output["Export"]["Name"]["Fn::Sub"].as_str())
        .map(|export| {
            export.strip_prefix("${AWS::StackName}-").expect("the stack's name").to_owned()
        })
        .collect()
}

#[test]
fn what_a_template_imports_another_exports_and_never_in_a_circle() {
    let exported_by = |parameter: &str| match parameter {
        "DataStack" => vec!["data"],
        "DatabaseStack" => vec!["database", "existing-database"],
        "ProjectorStack" => vec!["projector"],
        "ArchiveStack" => vec!["archive"],
        "ImagesStack" => vec!["images"],
        "TenantStack" => vec!["tenant"],
        other => panic!("{other} is no stack"),
    };
    // A projector does not know which of the two it is wired to.
    assert_eq!(exports("database"), exports("existing-database"));
    // From the longest life to the shortest.
    for (age, name) in TEMPLATES.iter().enumerate() {
        walk(template(name), &mut |value| {
            let Some(import) = value.get("Fn::ImportValue") else { return };
            let import = import["Fn::Sub"].as_str().expect("a name");
            let (parameter, suffix) = import.split_once('-').expect("a suffix");
            let parameter = parameter.trim_start_matches("${").trim_end_matches('}');
            for exporter in exported_by(parameter) {
                assert!(
                    exports(exporter).contains(suffix),
                    "{exporter} does not export {suffix}, which {name} imports"
                );
                assert!(
                    TEMPLATES[..age].contains(&exporter),
                    "{name} lives longer than {exporter}"
                );
            }
        });
    }
}

/// Whether the whole text matches, as `CloudFormation` takes an `AllowedPattern`.
fn matches(pattern: &str, text: &str) -> bool {
    let script = "import re, sys; sys.exit(not re.fullmatch(sys.argv[1], sys.argv[2]))";
    let status = Command::new("python3").args(["-c", script, pattern, text]).status();
    status.expect("python runs").success()
}

/// What `samconfig.toml` gives a stack; `Name=""` is the empty text.
fn overrides(commands: &'static Json) -> BTreeMap<&'static str, &'static str> {
    commands["deploy"]["parameters"]["parameter_overrides"]
        .as_array()
        .expect("parameters")
        .iter()
        .map(|pair| pair.as_str().and_then(|pair| pair.split_once('=')).expect("Name=value"))
        .map(|(name, value)| (name, if value == "\"\"" { "" } else { value }))
        .collect()
}

#[test]
fn samconfig_gives_every_stack_what_its_template_asks_for() {
    let config = &FILES["samconfig.toml"];
    let mut deployed = BTreeSet::new();
    for (environment, commands) in members(config).filter(|(name, _)| *name != "version") {
        let settings = &commands["deploy"]["parameters"];
        let file = settings["template_file"].as_str().expect("a template");
        deployed.insert(file.to_owned());
        assert_eq!(
            settings["confirm_changeset"], true,
            "{environment}: what changes is seen before it does"
        );
        assert_eq!(settings["resolve_s3"], true, "{environment}");
        let template = &FILES[file];
        let given = overrides(commands);
        // A stack whose creation failed stands in the way of the same command; sam deletes it.
        assert_eq!(settings["on_failure"], "DELETE", "{environment}");
        for (name, value) in &given {
            let parameter = &template["Parameters"][*name];
            assert!(parameter.is_object(), "{environment}: {file} has no parameter {name}");
            if value.starts_with("FILL-IN") {
                continue;
            }
            if let Some(pattern) = parameter["AllowedPattern"].as_str() {
                assert!(matches(pattern, value), "{environment}: {name}={value}");
            }
            if let Some(values) = parameter["AllowedValues"].as_array() {
                assert!(values.contains(&json!(value)), "{environment}: {name}={value}");
            }
        }
        for (name, parameter) in members(&template["Parameters"]) {
            let known = given.contains_key(name) || parameter.get("Default").is_some();
            assert!(known, "{environment} does not say {name}");
        }
        let grants = members(&template["Resources"]).any(|(_, resource)| {
            resource["Type"].as_str().is_some_and(|kind| kind.starts_with("AWS::IAM::"))
        });
        assert_eq!(settings["capabilities"] == "CAPABILITY_IAM", grants, "{environment}");
    }
    assert_eq!(deployed, TEMPLATES.iter().map(|name| format!("infra/{name}.yaml")).collect());
    // As shipped. The runbook tells a team how to fill it in.
    let of = |environment: &str| {
        config[environment]["deploy"]["parameters"]["parameter_overrides"].to_string()
    };
    if !of("new-database").contains("SnapshotIdentifier=FILL-IN") {
        return;
    }
    assert!(of("old").contains("StartingPosition=LATEST"));
    assert!(of("new").contains("StartingPosition=TRIM_HORIZON"));
    assert!(
        !of("new").contains("MaximumRecordAgeSeconds"),
        "the older part of the gap would be given up"
    );
    assert!(!of("new").contains("ArchiveBucket"), "the replication writes that bucket");
}
