//! Replays the corpus: the inputs that the fuzzer found to reach something new, and those that once
//! broke something. A target without any is a target that nobody tests.

use std::fs;
use std::path::Path;

use fuzz::targets::{MAX_BYTES, TARGETS};

#[test]
fn every_input_of_the_corpus_keeps_every_promise() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../corpus");
    for (name, target) in TARGETS {
        let mut inputs = 0;
        for entry in fs::read_dir(corpus.join(name)).expect(name) {
            let path = entry.expect("an entry").path();
            let bytes = fs::read(&path).expect("an input");
            assert!(bytes.len() <= MAX_BYTES, "{} is too long", path.display());
            // A panic names its input.
            println!("{}", path.display());
            target(&bytes);
            inputs += 1;
        }
        assert!(inputs >= 10, "{name} has {inputs} inputs");
    }
}
