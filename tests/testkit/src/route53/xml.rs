//! As much XML as the API of Route 53 needs: elements and their text, no attributes.

/// An element: its name, its elements, and its text.
#[derive(Debug, Default)]
pub(super) struct Element {
    pub(super) name: String,
    pub(super) children: Vec<Element>,
    pub(super) text: String,
}

impl Element {
    /// Reads a document; nothing if it is none.
    pub(super) fn parse(document: &str) -> Option<Self> {
        let mut rest = document.trim_start();
        if rest.starts_with("<?") {
            rest = rest.split_once("?>")?.1.trim_start();
        }
        Self::read(&mut rest)
    }

    /// Reads the element at the beginning, and leaves what follows it.
    fn read(rest: &mut &str) -> Option<Self> {
        let (tag, after) = rest.strip_prefix('<')?.split_once('>')?;
        *rest = after;
        let name = tag.trim_end_matches('/').split_whitespace().next()?.to_owned();
        let mut element = Self { name, ..Self::default() };
        if tag.ends_with('/') {
            return Some(element);
        }
        loop {
            let (text, tag) = rest.split_at(rest.find('<')?);
            element.text += &unescape(text);
            if let Some(closing) = tag.strip_prefix("</") {
                let (name, after) = closing.split_once('>')?;
                *rest = after;
                return (name == element.name).then_some(element);
            }
            *rest = tag;
            element.children.push(Self::read(rest)?);
        }
    }

    /// The element of this name in this one.
    pub(super) fn child(&self, name: &str) -> Option<&Self> {
        self.children.iter().find(|child| child.name == name)
    }

    /// The text of the element of this name in this one.
    pub(super) fn text_of(&self, name: &str) -> Option<&str> {
        self.child(name).map(|child| child.text.as_str())
    }
}

/// An element with what is inside.
pub(super) fn element(name: &str, inner: &str) -> String {
    format!("<{name}>{inner}</{name}>")
}

/// A text as it is inside an element.
pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

fn unescape(text: &str) -> String {
    text.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"").replace("&amp;", "&")
}
