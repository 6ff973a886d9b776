//! One step of a source is read while others are applied.

use tokio::sync::mpsc;

/// Reads steps to the end, or until nobody takes them any more. An error is the last one.
pub(crate) async fn send_all<T>(
    mut next: impl AsyncFnMut() -> anyhow::Result<Option<T>>,
    sender: mpsc::Sender<anyhow::Result<T>>,
) {
    // A step is read once there is a place for it, so that one at most is in memory beside those
    // under way.
    while let Ok(place) = sender.reserve().await
        && let Some(step) = next().await.transpose()
    {
        let failed = step.is_err();
        place.send(step);
        if failed {
            break;
        }
    }
}
