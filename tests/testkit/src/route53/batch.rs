//! A change batch: how it is read, and what it makes of a zone, by the rules and in the words of
//! Route 53. It is made whole, or not at all.

use super::xml::Element;
use super::{Content, RecordSet, ZONE_NAME};

/// The actions of a batch with their record sets; nothing if it cannot be read.
pub(super) fn changes(root: &Element) -> Option<Vec<(String, RecordSet)>> {
    let changes = root.child("ChangeBatch")?.child("Changes")?;
    let one = |change: &Element| {
        let action = change.text_of("Action")?.to_owned();
        Some((action, record_set(change.child("ResourceRecordSet")?)?))
    };
    changes.children.iter().map(one).collect()
}

fn record_set(element: &Element) -> Option<RecordSet> {
    let weight = element.text_of("Weight").and_then(|weight| weight.parse().ok());
    let content = match (element.child("AliasTarget"), element.child("ResourceRecords")) {
        (Some(alias), None) => Content::Alias {
            zone: alias.text_of("HostedZoneId")?.to_owned(),
            name: alias.text_of("DNSName")?.to_owned(),
            evaluate: alias.text_of("EvaluateTargetHealth")? == "true",
        },
        (None, Some(records)) => Content::Values {
            ttl_seconds: element.text_of("TTL")?.parse().ok()?,
            values: records
                .children
                .iter()
                .map(|record| record.text_of("Value").map(str::to_owned))
                .collect::<Option<_>>()?,
        },
        _ => return None,
    };
    Some(RecordSet {
        name: element.text_of("Name")?.to_owned(),
        kind: element.text_of("Type")?.to_owned(),
        weighted: element.text_of("SetIdentifier").map(str::to_owned).zip(weight),
        content,
    })
}

/// The zone after a batch, or why it is refused.
pub(super) fn applied(
    zone: &[RecordSet],
    changes: &[(String, RecordSet)],
) -> Result<Vec<RecordSet>, Vec<String>> {
    let (mut zone, mut refusals) = (zone.to_vec(), Vec::new());
    for (action, set) in changes {
        if let Err(refusal) = apply(&mut zone, action, set) {
            refusals.push(refusal);
        }
    }
    if refusals.is_empty() { Ok(zone) } else { Err(refusals) }
}

fn apply(zone: &mut Vec<RecordSet>, action: &str, set: &RecordSet) -> Result<(), String> {
    let named = format!("resource record set [name='{}', type='{}']", set.name, set.kind);
    if set.name != ZONE_NAME && !set.name.ends_with(&format!(".{ZONE_NAME}")) {
        return Err(format!(
            "RRSet with DNS name {} is not permitted in zone {ZONE_NAME}",
            set.name
        ));
    }
    let index = zone.iter().position(|other| other.place() == set.place());
    match (action, index) {
        ("DELETE", None) => Err(format!("Tried to delete {named} but it was not found")),
        ("DELETE", Some(index)) if zone[index] != *set => Err(format!(
            "Tried to delete {named} but the values provided do not match the current values"
        )),
        ("DELETE", Some(index)) => {
            zone.remove(index);
            Ok(())
        }
        ("CREATE", Some(_)) => Err(format!("Tried to create {named} but it already exists")),
        ("CREATE" | "UPSERT", _) => {
            refuse_beside(zone, set)?;
            match index {
                Some(index) => zone[index] = set.clone(),
                None => zone.push(set.clone()),
            }
            Ok(())
        }
        _ => Err(format!("Invalid action {action}")),
    }
}

/// Simple and weighted record sets of a name and type exclude each other, and so do a CNAME and
/// anything else.
fn refuse_beside(zone: &[RecordSet], set: &RecordSet) -> Result<(), String> {
    let named = format!("RRSet with DNS name {}, type {}", set.name, set.kind);
    for other in zone.iter().filter(|other| other.name == set.name) {
        if (other.kind == "CNAME") != (set.kind == "CNAME") {
            return Err(format!("{named} is not permitted as it conflicts with other records"));
        }
        if other.kind == set.kind && other.weighted.is_some() != set.weighted.is_some() {
            let kind = if set.weighted.is_some() {
                "a non-weighted set exists"
            } else {
                "other RRSets exist"
            };
            return Err(format!(
                "{named} cannot be created as {kind} with the same name and type."
            ));
        }
    }
    Ok(())
}
