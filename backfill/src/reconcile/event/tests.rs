//! Each form of a request, and what is none.

use super::{Answer, Begin, End, Event, Follow, NewRange, Range, Ranges, Slice, Step, parse};

fn slice() -> Slice {
    Slice {
        bucket: "b".to_owned(),
        key: "AWSDynamoDB/1/data/a.json.gz".to_owned(),
        md5: "m".to_owned(),
        items: 5,
        repair: Some(7),
        run: None,
        next: 2,
        done: false,
        compared: 0,
        differing: 0,
        repaired: 0,
        rejected: 0,
    }
}

fn range() -> Range {
    Range {
        run: 3,
        repair: Some(7),
        step: Step::Check,
        after: "a".to_owned(),
        through: None,
        next: String::new(),
        done: false,
        rows: 0,
        asked: 0,
        gone: 0,
        removed: 0,
        rejected: 0,
    }
}

#[test]
fn each_form_is_read() {
    let (owner, source) = ("arn:e".to_owned(), "reconcile".to_owned());
    for (json, expected) in [
        (
            r#"{"reconcile": {"begin": {"source": "reconcile", "owner": "arn:e", "repair": true}}}"#,
            Event::Begin(Begin { source, owner: owner.clone(), repair: true }),
        ),
        (
            r#"{"reconcile": {"follow": {"repair": 7, "owner": "arn:e"}}}"#,
            Event::Follow(Follow { repair: 7, owner: owner.clone() }),
        ),
        (
            r#"{"reconcile": {"ranges": {"run": 3, "repair": null, "at_most": 9}}}"#,
            Event::Ranges(Ranges { run: 3, repair: None, at_most: 9 }),
        ),
        (
            r#"{"reconcile": {"run": 3, "repair": 7, "step": "check", "after": "a", "through": null}}"#,
            Event::Range(range()),
        ),
        (
            r#"{"reconcile": {"end": {"run": 3, "repair": 7, "owner": "arn:e", "complete": true}}}"#,
            Event::End(End { run: 3, repair: Some(7), owner, complete: true }),
        ),
        (
            r#"{"reconcile": {"bucket": "b", "key": "AWSDynamoDB/1/data/a.json.gz", "md5": "m", "items": 5, "repair": 7, "next": 2}}"#,
            Event::Slice(slice()),
        ),
        (
            r#"{"reconcile": {"bucket": "b", "key": "AWSDynamoDB/1/data/a.json.gz", "md5": "m", "items": 5, "repair": null}}"#,
            Event::Slice(Slice { repair: None, next: 0, ..slice() }),
        ),
        (
            r#"{"reconcile": {"bucket": "b", "key": "AWSDynamoDB/1/data/a.json.gz", "md5": "m", "items": 5, "repair": 7, "run": 3, "next": 2}}"#,
            Event::Slice(Slice { run: Some(3), ..slice() }),
        ),
    ] {
        assert_eq!(parse(json).expect(json), expected, "{json}");
    }
}

#[test]
fn an_answer_can_be_sent_back_as_it_is() {
    let slice = Slice { next: 4, compared: 4, differing: 2, repaired: 1, rejected: 1, ..slice() };
    let of_run = Slice { run: Some(3), ..slice.clone() };
    let range = Range { next: "b".to_owned(), done: true, rows: 4, asked: 2, gone: 1, ..range() };
    for (answer, event) in [
        (Answer::Slice(slice.clone()), Event::Slice(slice)),
        (Answer::Slice(of_run.clone()), Event::Slice(of_run)),
        (Answer::Range(range.clone()), Event::Range(range)),
    ] {
        let json = serde_json::to_string(&answer).expect("JSON");
        assert_eq!(parse(&format!(r#"{{"reconcile": {json}}}"#)).expect(&json), event);
    }
}

/// Each of the ranges in an answer is a request for its first step.
#[test]
fn a_new_range_is_a_request() {
    let (after, through) = ("a".to_owned(), Some("b".to_owned()));
    let new = NewRange { run: 3, repair: None, step: Step::Count, after, through: through.clone() };
    let json = serde_json::to_string(&Answer::Ranges { ranges: vec![new] }).expect("JSON");
    let expected = r#"{"run":3,"repair":null,"step":"count","after":"a","through":"b"}"#;
    assert_eq!(json, format!(r#"{{"ranges":[{expected}]}}"#));
    let read = parse(&format!(r#"{{"reconcile": {expected}}}"#)).expect("a range");
    assert_eq!(read, Event::Range(Range { repair: None, step: Step::Count, through, ..range() }));
}

#[test]
fn anything_else_is_refused_and_the_reason_is_named() {
    for (json, said) in [
        ("7", "it is no JSON object"),
        (r#"{"Records": []}"#, "set EVENTS to streams"),
        ("{}", "other members than reconcile alone"),
        (r#"{"reconcile": 7}"#, "reconcile is no object"),
        (r#"{"reconcile": {}, "more": 1}"#, "other members than reconcile alone"),
        (r#"{"reconcile": {}}"#, "a slice: missing field `bucket`"),
        (
            r#"{"reconcile": {"begin": {"source": "scan", "owner": "o", "repair": true}}}"#,
            "source is \"scan\"",
        ),
        (
            r#"{"reconcile": {"begin": {"source": "reconcile", "owner": " ", "repair": true}}}"#,
            "owner is empty",
        ),
        (r#"{"reconcile": {"follow": {"repair": "7", "owner": "o"}}}"#, "follow: invalid type"),
        (r#"{"reconcile": {"follow": {"repair": 7, "owner": "o", "x": 1}}}"#, "unknown field `x`"),
        (
            r#"{"reconcile": {"follow": {"repair": 7, "owner": "o"}, "next": 1}}"#,
            "follow is not alone",
        ),
        (
            r#"{"reconcile": {"end": {"run": 3, "repair": 7, "owner": "o"}}}"#,
            "missing field `complete`",
        ),
        (
            r#"{"reconcile": {"end": {"run": 3, "owner": "o", "complete": true}}}"#,
            "missing field `repair`",
        ),
        (
            r#"{"reconcile": {"ranges": {"run": 3, "repair": null, "at_most": 0}}}"#,
            "at_most is 0, expected 1..=1000",
        ),
        (
            r#"{"reconcile": {"run": 3, "repair": 7, "step": "guess", "after": "", "through": null}}"#,
            "a range: unknown variant `guess`",
        ),
        (
            r#"{"reconcile": {"run": 3, "repair": 7, "step": "count", "after": ""}}"#,
            "a range: missing field `through`",
        ),
        (
            r#"{"reconcile": {"bucket": "b", "key": "k", "md5": "m", "items": 5, "next": 0}}"#,
            "missing field `repair`",
        ),
        (
            r#"{"reconcile": {"bucket": "b", "key": "k", "md5": "m", "items": 5, "repair": 1, "next": 6}}"#,
            "next is 6, and the file has 5 items",
        ),
        (
            r#"{"reconcile": {"bucket": "b", "key": "k", "md5": "m", "items": -5, "repair": 1, "next": 0}}"#,
            "a slice: invalid ",
        ),
    ] {
        let error = parse(json).expect_err(json).to_string();
        assert!(error.contains(said), "{json}: {error}");
        assert!(error.contains("{\"reconcile\": {\"begin\""), "{error}");
    }
}
