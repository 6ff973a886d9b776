//! The projector's releases: without one, a stack is what it always was; with one, the mappings
//! follow an alias, which `CodeDeploy` moves and an alarm takes back. No stand-in knows
//! `CodeDeploy`.

use std::collections::BTreeSet;

use serde_json::{Value as Json, json};

use super::{list, members, template};

fn resource(id: &str) -> &'static Json {
    &template("projector")["Resources"][id]
}

/// A stack that exists has no Release: nothing of this may appear in it, and its mappings stay
/// where they are.
#[test]
fn without_a_release_nothing_of_it_is_there() {
    let template = template("projector");
    assert_eq!(template["Parameters"]["Release"]["Default"], "");
    let given = json!({ "Fn::Not": [{ "Fn::Equals": [{ "Ref": "Release" }, ""] }] });
    assert_eq!(template["Conditions"]["HasRelease"], given);
    for id in ["Version", "Alias", "Releases", "ReleaseGroup", "ReleaseRole"] {
        assert_eq!(resource(id)["Condition"], "HasRelease", "{id}");
    }
    for (name, output) in members(&template["Outputs"]) {
        let of_release = output["Value"].to_string().contains("Version");
        assert_eq!(output["Condition"] == "HasRelease", of_release, "{name}");
    }
    let function = &resource("Function")["Properties"];
    // SAM's own alias cannot be left out, and misses what a parameter alone changes.
    for of_sam in ["AutoPublishAlias", "DeploymentPreference"] {
        assert!(function.get(of_sam).is_none(), "{of_sam}");
    }
    let description = &function["Description"]["Fn::If"];
    assert_eq!(description[0], "HasRelease");
    assert!(description[1].to_string().contains("${Release}"), "or nothing would be published");
    assert_eq!(
        description[2],
        "Merges the records of both streams into measurements rows and objects"
    );
}

/// The longest text that a parameter of the projector takes.
fn longest(parameter: &str) -> usize {
    let definition = &template("projector")["Parameters"][parameter];
    if let Some(values) = definition["AllowedValues"].as_array() {
        return values.iter().filter_map(Json::as_str).map(str::len).max().expect("values");
    }
    if let Some(most) = definition["MaxValue"].as_i64() {
        return most.to_string().len();
    }
    let pattern = definition["AllowedPattern"].as_str().expect("a pattern");
    let most = |text: &str| {
        let (_, bounds) = text.rsplit_once('{').expect("a bound");
        bounds.split_once('}').expect("a bound").0.split(',').next_back().map(str::parse::<usize>)
    };
    let most = most(pattern).expect("a bound").expect("a number");
    // What stands before and after the part that is bounded.
    most + if parameter == "Release" { 0 } else { 2 }
}

/// A version is a copy of the settings, too. It is made anew if its description changes; if that
/// missed `ArchiveBucket`, the runbook's step would deploy and change nothing.
#[test]
fn a_version_is_made_of_every_setting_that_the_runbook_changes() {
    let version = resource("Version");
    assert_eq!(
        version["DeletionPolicy"], "RetainExceptOnCreate",
        "the same again after a rollback"
    );
    assert_eq!(version["UpdateReplacePolicy"], "Retain", "the way back");
    let join = version["Properties"]["Description"]["Fn::Join"].as_array().expect("a text");
    let parts: Vec<&str> =
        list(&join[1]).into_iter().map(|part| part["Ref"].as_str().expect("a parameter")).collect();
    for needed in ["Release", "DatabaseStack", "ArchiveBucket", "TtlRemovals"] {
        assert!(parts.contains(&needed), "{needed}");
    }
    assert_eq!(longest("Release"), 40, "a commit");
    assert_eq!(longest("DatabaseAuth"), 6);
    let length = parts.iter().map(|part| longest(part)).sum::<usize>() + parts.len() - 1;
    assert!(length <= 256, "Lambda takes 256 characters, and this has up to {length}");
    // What the template promises is what is there.
    let promise = template("projector")["Parameters"]["Release"]["Description"].as_str();
    let promise = promise.expect("a description");
    assert!(parts[1..].iter().all(|part| promise.contains(part)), "{promise}");
}

#[test]
fn an_alarm_takes_a_release_back() {
    let update = &resource("Alias")["UpdatePolicy"]["CodeDeployLambdaAliasUpdate"];
    assert_eq!(update["ApplicationName"], json!({ "Ref": "Releases" }));
    assert_eq!(update["DeploymentGroupName"], json!({ "Ref": "ReleaseGroup" }));
    let alias = &resource("Alias")["Properties"];
    assert_eq!(alias["FunctionVersion"], json!({ "Fn::GetAtt": ["Version", "Version"] }));

    let group = &resource("ReleaseGroup")["Properties"];
    assert_eq!(group["DeploymentStyle"]["DeploymentOption"], "WITH_TRAFFIC_CONTROL");
    let events: BTreeSet<&str> = list(&group["AutoRollbackConfiguration"]["Events"])
        .into_iter()
        .filter_map(Json::as_str)
        .collect();
    assert!(events.contains("DEPLOYMENT_STOP_ON_ALARM") && events.contains("DEPLOYMENT_FAILURE"));
    // The alarms are those of alarms.yaml, by the names that they have there.
    let alarms = &template("alarms")["Resources"];
    let there: BTreeSet<String> = members(alarms)
        .filter_map(|(_, alarm)| alarm["Properties"]["AlarmName"]["Fn::Sub"].as_str())
        .map(|name| name.replace("${ProjectorStack}", "${AWS::StackName}"))
        .collect();
    let watched = group["AlarmConfiguration"]["Alarms"].as_array().expect("alarms");
    let watched: Vec<&str> =
        watched.iter().map(|alarm| alarm["Name"]["Fn::Sub"].as_str().expect("a name")).collect();
    assert!(watched.iter().all(|name| there.contains(*name)), "{watched:?} of {there:?}");
    // A function that reports records as failed answers well: errors alone would see nothing.
    for needed in ["erring", "failing", "rejecting"] {
        assert!(watched.iter().any(|name| name.ends_with(&format!("-{needed}"))), "{needed}");
    }
    // The slowest of them needs its period before the first step ends.
    let steps = &template("projector")["Parameters"]["ReleaseSteps"]["AllowedValues"];
    for step in list(steps).into_iter().filter_map(Json::as_str) {
        let minutes = step.strip_suffix("Minutes").map(|step| {
            let digits = step.trim_end_matches(|character: char| character.is_ascii_digit()).len();
            step[digits..].parse::<i64>().expect("minutes")
        });
        let period = alarms["Rejecting"]["Properties"]["Period"].as_i64().expect("a period");
        assert!(minutes.is_none_or(|minutes| minutes * 60 >= 2 * period), "{step}");
    }
}

/// The function's own role forbids the code what Lambda does for its network; by an alias, the
/// function's ARN has one more part.
#[test]
fn what_is_denied_to_the_code_is_denied_to_its_versions() {
    let mut denied = Vec::new();
    super::walk(&resource("Role")["Properties"]["Policies"], &mut |value| {
        if value["Effect"] == "Deny" {
            denied.push(&value["Condition"]["ArnEquals"]["lambda:SourceFunctionArn"]);
        }
    });
    assert_eq!(denied.len(), 1);
    let arns: Vec<&str> =
        list(denied[0]).into_iter().filter_map(|arn| arn["Fn::Sub"].as_str()).collect();
    assert_eq!(arns.len(), 2);
    assert_eq!(format!("{}:*", arns[0]), arns[1]);
}
