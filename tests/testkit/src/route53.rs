//! A small Route 53, for `infra/scripts/dns-switch`: one hosted zone in the documented XML, with
//! pages, with change batches that are made whole or not at all, and with changes that are PENDING
//! for a while. It lists load balancers, too.

mod batch;
mod xml;

use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

use xml::{Element, element, escape};

/// The id of the zone.
pub const ZONE: &str = "Z0TESTZONE";
/// The name of the zone.
pub const ZONE_NAME: &str = "example.com.";
/// The zone in which the aliases of load balancers are.
pub const ALB_ZONE: &str = "Z35SXDOTRQ7X7K";

/// What a record set answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// The addresses of another name.
    Alias {
        /// The hosted zone of that name.
        zone: String,
        /// That name, with its last dot.
        name: String,
        /// Whether the health of the target counts.
        evaluate: bool,
    },
    /// These values.
    Values {
        /// How long a resolver may keep them.
        ttl_seconds: u32,
        /// As the API shows them; a TXT with its quotes.
        values: Vec<String>,
    },
}

/// A record set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordSet {
    /// With its last dot.
    pub name: String,
    /// Such as A.
    pub kind: String,
    /// The set identifier and the weight, if it is weighted.
    pub weighted: Option<(String, u16)>,
    /// What it answers.
    pub content: Content,
}

impl RecordSet {
    /// An alias of a load balancer.
    #[must_use]
    pub fn alias(name: &str, kind: &str, target: &str) -> Self {
        let (zone, target) = (ALB_ZONE.to_owned(), format!("{target}."));
        let content = Content::Alias { zone, name: target, evaluate: true };
        Self { name: format!("{name}."), kind: kind.to_owned(), weighted: None, content }
    }

    /// A record set with one value.
    #[must_use]
    pub fn value(name: &str, kind: &str, value: &str) -> Self {
        let content = Content::Values { ttl_seconds: 300, values: vec![value.to_owned()] };
        Self { name: format!("{name}."), kind: kind.to_owned(), weighted: None, content }
    }

    /// The same as one of a pair.
    #[must_use]
    pub fn with_weight(mut self, identifier: &str, weight: u16) -> Self {
        self.weighted = Some((identifier.to_owned(), weight));
        self
    }

    /// The order in which Route 53 lists: labels from the right, then type and identifier.
    fn place(&self) -> (Vec<&str>, &str, &str) {
        let labels = self.name.trim_end_matches('.').rsplit('.').collect();
        let identifier = self.weighted.as_ref().map_or("", |(identifier, _)| identifier);
        (labels, &self.kind, identifier)
    }

    fn xml(&self) -> String {
        let mut inner = element("Name", &escape(&self.name)) + &element("Type", &self.kind);
        if let Some((identifier, weight)) = &self.weighted {
            inner += &element("SetIdentifier", &escape(identifier));
            inner += &element("Weight", &weight.to_string());
        }
        match &self.content {
            Content::Alias { zone, name, evaluate } => {
                let alias = element("HostedZoneId", zone)
                    + &element("DNSName", name)
                    + &element("EvaluateTargetHealth", &evaluate.to_string());
                inner += &element("AliasTarget", &alias);
            }
            Content::Values { ttl_seconds, values } => {
                inner += &element("TTL", &ttl_seconds.to_string());
                let one =
                    |value: &String| element("ResourceRecord", &element("Value", &escape(value)));
                inner += &element("ResourceRecords", &values.iter().map(one).collect::<String>());
            }
        }
        element("ResourceRecordSet", &inner)
    }
}

/// A load balancer of the account.
#[derive(Clone, Debug)]
pub struct LoadBalancer {
    /// Its DNS name.
    pub name: String,
    /// `application` or `network`.
    pub kind: String,
    /// Such as `active`.
    pub state: String,
    /// `ipv4` or `dualstack`.
    pub addresses: String,
}

/// What becomes of a change batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AtChange {
    /// It is made, and answered.
    #[default]
    Answered,
    /// It gets no answer, and is not made.
    LostBefore,
    /// It is made, and gets no answer.
    LostAfter,
    /// It is made, and the answer is an error of the server; the next one is answered.
    FailedAfter,
}

/// Everything that the server has, and how it behaves. A test changes it as it likes.
#[derive(Clone, Debug)]
pub struct Account {
    /// The record sets, in the order of Route 53.
    pub sets: Vec<RecordSet>,
    /// The load balancers.
    pub load_balancers: Vec<LoadBalancer>,
    /// How many record sets are on a page.
    pub page_size: usize,
    /// How many of the next calls are throttled.
    pub throttled: usize,
    /// How many looks a change is PENDING for.
    pub pending: usize,
    /// What becomes of the next batches.
    pub at_change: AtChange,
    /// What another writer makes of the zone before the next batch is looked at.
    pub written_before: Option<Vec<RecordSet>>,
    /// What another writer makes of the zone after the next batch was made.
    pub written_after: Option<Vec<RecordSet>>,
    /// Each batch that arrived: its actions, and whether it was made.
    pub batches: Vec<(Vec<String>, bool)>,
    /// How often each operation was called, throttled calls too.
    pub calls: Vec<String>,
}

/// The server.
#[derive(Clone, Debug)]
pub struct Route53 {
    /// Where it listens.
    pub url: String,
    account: Arc<Mutex<Account>>,
}

/// A status and a body; nothing if there is no answer.
type Answer = Option<(u16, String)>;

impl Route53 {
    /// Starts it with these record sets, beside those that every zone has.
    ///
    /// # Panics
    /// If no port can be had.
    pub async fn start(sets: Vec<RecordSet>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let account = Account {
            sets: sorted(sets),
            load_balancers: Vec::new(),
            page_size: 2,
            throttled: 0,
            pending: 0,
            at_change: AtChange::Answered,
            written_before: None,
            written_after: None,
            batches: Vec::new(),
            calls: Vec::new(),
        };
        let server = Self { url, account: Arc::new(Mutex::new(account)) };
        let serving = server.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let server = serving.clone();
                tokio::spawn(async move {
                    let answer = service_fn(|request| server.answer(request));
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), answer)
                        .await
                });
            }
        });
        server
    }

    /// Changes the account.
    ///
    /// # Panics
    /// If another change panicked.
    pub fn change(&self, change: impl FnOnce(&mut Account)) {
        let mut account = self.account.lock().expect("not poisoned");
        change(&mut account);
        account.sets = sorted(std::mem::take(&mut account.sets));
    }

    /// The account as it is now.
    ///
    /// # Panics
    /// If a change panicked.
    #[must_use]
    pub fn account(&self) -> Account {
        self.account.lock().expect("not poisoned").clone()
    }

    /// Waits until the account is as wanted, two minutes at most.
    ///
    /// # Panics
    /// If it never is.
    pub async fn wait_until(&self, wanted: impl Fn(&Account) -> bool) {
        for _ in 0..12_000 {
            if wanted(&self.account()) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the account never was as wanted: {:?}", self.account());
    }

    async fn answer(
        &self,
        request: Request<Incoming>,
    ) -> Result<Response<Full<Bytes>>, Infallible> {
        let (method, uri) = (request.method().clone(), request.uri().clone());
        let body = request.into_body().collect().await.map(http_body_util::Collected::to_bytes);
        let body = String::from_utf8(body.unwrap_or_default().to_vec()).unwrap_or_default();
        let query = uri.query().unwrap_or_default();
        let answer = {
            let mut account = self.account.lock().expect("not poisoned");
            account.answer(&method, uri.path(), query, &body)
        };
        let Some((status, body)) = answer else { return std::future::pending().await };
        let response = Response::builder().status(status).header("content-type", "text/xml");
        Ok(response.body(Full::from(body)).expect("a response"))
    }
}

/// In the order of Route 53.
fn sorted(mut sets: Vec<RecordSet>) -> Vec<RecordSet> {
    sets.sort_by(|one, other| one.place().cmp(&other.place()));
    sets
}

fn error(status: u16, code: &str, message: &str) -> (u16, String) {
    let inner =
        element("Type", "Sender") + &element("Code", code) + &element("Message", &escape(message));
    let inner = element("Error", &inner) + &element("RequestId", "of-a-test");
    (status, element("ErrorResponse", &inner))
}

fn parameter<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    query
        .split('&')
        .find_map(|pair| pair.split_once('=').filter(|(key, _)| *key == name))
        .map(|(_, value)| value)
}

impl Account {
    fn answer(&mut self, method: &Method, path: &str, query: &str, body: &str) -> Answer {
        let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        let (operation, id) = match (method.as_str(), &parts[..]) {
            ("GET", ["2013-04-01", "hostedzone", id, "rrset"]) => ("ListResourceRecordSets", *id),
            ("POST", ["2013-04-01", "hostedzone", id, "rrset"]) => {
                ("ChangeResourceRecordSets", *id)
            }
            ("GET", ["2013-04-01", "change", id]) => ("GetChange", *id),
            ("POST", []) => ("DescribeLoadBalancers", ZONE),
            _ => return Some(error(404, "UnknownOperation", path)),
        };
        self.calls.push(operation.to_owned());
        if self.throttled > 0 {
            self.throttled -= 1;
            return Some(error(400, "Throttling", "Rate exceeded"));
        }
        match operation {
            "GetChange" => Some((200, self.change_info("GetChangeResponse", id))),
            "DescribeLoadBalancers" => Some((200, self.describe_load_balancers())),
            _ if id != ZONE => Some(error(404, "NoSuchHostedZone", "No hosted zone found")),
            "ListResourceRecordSets" => Some((200, self.list(query))),
            _ => self.change(body),
        }
    }

    /// A page that begins at the given place.
    fn list(&self, query: &str) -> String {
        let from = |set: &&RecordSet| {
            let name = parameter(query, "name").unwrap_or_default();
            let start = RecordSet {
                weighted: parameter(query, "identifier").map(|id| (id.to_owned(), 0)),
                ..RecordSet::value(
                    name.trim_end_matches('.'),
                    parameter(query, "type").unwrap_or_default(),
                    "",
                )
            };
            name.is_empty() || set.place() >= start.place()
        };
        let remaining: Vec<&RecordSet> = self.sets.iter().filter(from).collect();
        let page: String = remaining.iter().take(self.page_size).map(|set| set.xml()).collect();
        let mut inner = element("ResourceRecordSets", &page);
        inner += &element("IsTruncated", &(remaining.len() > self.page_size).to_string());
        if let Some(next) = remaining.get(self.page_size) {
            inner += &element("NextRecordName", &next.name);
            inner += &element("NextRecordType", &next.kind);
            if let Some((identifier, _)) = &next.weighted {
                inner += &element("NextRecordIdentifier", identifier);
            }
        }
        inner += &element("MaxItems", &self.page_size.to_string());
        element("ListResourceRecordSetsResponse", &inner)
    }

    fn change(&mut self, body: &str) -> Answer {
        if let Some(sets) = self.written_before.take() {
            self.sets = sorted(sets);
        }
        let Some(changes) = Element::parse(body).and_then(|root| batch::changes(&root)) else {
            return Some(error(400, "InvalidInput", "the batch cannot be read"));
        };
        let actions = changes.iter().map(|(action, set)| {
            let identifier = set.weighted.as_ref().map_or("", |(identifier, _)| identifier);
            format!("{action} {} {} {identifier}", set.name, set.kind).trim_end().to_owned()
        });
        let actions = actions.collect();
        let made = if self.at_change == AtChange::LostBefore {
            Ok(self.sets.clone())
        } else {
            batch::applied(&self.sets, &changes)
        };
        let is_made = made.is_ok() && self.at_change != AtChange::LostBefore;
        self.batches.push((actions, is_made));
        match made {
            Ok(sets) => self.sets = sorted(sets),
            Err(messages) => {
                let message = format!("[{}]", messages.join(", "));
                return Some(error(400, "InvalidChangeBatch", &message));
            }
        }
        match self.at_change {
            AtChange::LostBefore | AtChange::LostAfter => return None,
            AtChange::FailedAfter => {
                self.at_change = AtChange::Answered;
                return Some(error(500, "InternalFailure", "by the test"));
            }
            AtChange::Answered => {}
        }
        if let Some(sets) = self.written_after.take() {
            self.sets = sorted(sets);
        }
        let id = format!("C{}", self.batches.len());
        Some((200, self.change_info("ChangeResourceRecordSetsResponse", &id)))
    }

    /// The state of a change; each look brings it nearer to INSYNC.
    fn change_info(&mut self, root: &str, id: &str) -> String {
        let status = if self.pending > 0 { "PENDING" } else { "INSYNC" };
        if root == "GetChangeResponse" {
            self.pending = self.pending.saturating_sub(1);
        }
        let inner = element("Id", &format!("/change/{id}"))
            + &element("Status", status)
            + &element("SubmittedAt", "2026-11-26T02:00:00Z");
        element(root, &element("ChangeInfo", &inner))
    }

    fn describe_load_balancers(&self) -> String {
        let one = |alb: &LoadBalancer| {
            let inner = element("DNSName", &alb.name)
                + &element("CanonicalHostedZoneId", ALB_ZONE)
                + &element("Type", &alb.kind)
                + &element("IpAddressType", &alb.addresses)
                + &element("State", &element("Code", &alb.state));
            element("member", &inner)
        };
        let members: String = self.load_balancers.iter().map(one).collect();
        let result = element("LoadBalancers", &members);
        let inner = element("DescribeLoadBalancersResult", &result);
        element("DescribeLoadBalancersResponse", &inner)
    }
}
