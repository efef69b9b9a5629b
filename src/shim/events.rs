//! What containerd is told without asking: an event for each thing that happens to a task.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use containerd_shim::protos::protobuf::well_known_types::timestamp::Timestamp;
use containerd_shim::protos::protobuf::{MessageDyn, MessageField};
use containerd_shim::protos::shim::event::Envelope;
use containerd_shim::protos::shim::events::ForwardRequest;
use containerd_shim::protos::shim_async::{Client, EventsClient};
use containerd_shim::protos::ttrpc::context;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Events that may wait while containerd is away. What comes after is dropped, and said so.
const LONGEST_QUEUE: usize = 1024;
/// How often one event is tried, a little longer apart each time.
const TRIES: u64 = 6;
/// The longest that containerd may take for one event.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Sends events in the order in which they were given.
#[derive(Debug)]
pub(super) struct Publisher {
    namespace: String,
    /// Nothing once the last event was given.
    queue: Mutex<Option<mpsc::Sender<Envelope>>>,
}

/// The task that sends. It ends when its [`Publisher`] was closed and all is sent.
pub(super) type Sending = JoinHandle<()>;

impl Publisher {
    /// Starts to send to the ttrpc socket at `address`.
    pub(super) fn start(address: String, namespace: String) -> (Publisher, Sending) {
        let (queue, events) = mpsc::channel(LONGEST_QUEUE);
        (Publisher { namespace, queue: Mutex::new(Some(queue)) }, tokio::spawn(send(address, events)))
    }

    /// Queues one event, without waiting.
    pub(super) fn publish(&self, topic: &str, event: impl MessageDyn) {
        let event: Box<dyn MessageDyn> = Box::new(event);
        let Ok(any) = containerd_shim::util::convert_to_any(event) else {
            tracing::error!(topic, "an event cannot be encoded");
            return;
        };
        let envelope = Envelope {
            timestamp: MessageField::some(timestamp(SystemTime::now())),
            namespace: self.namespace.clone(),
            topic: topic.to_owned(),
            event: MessageField::some(any),
            ..Envelope::default()
        };
        let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if queue.as_ref().is_none_or(|queue| queue.try_send(envelope).is_err()) {
            tracing::warn!(topic, "containerd takes no events: this one is dropped");
        }
    }

    /// Says that there are no more, so that what sends them comes to its end.
    pub(super) fn close(&self) {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

/// A point in time as protobuf has it.
pub(super) fn timestamp(at: SystemTime) -> Timestamp {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp {
        seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(since.subsec_nanos()).unwrap_or(0),
        ..Timestamp::default()
    }
}

async fn send(address: String, mut events: mpsc::Receiver<Envelope>) {
    let mut client = None;
    while let Some(envelope) = events.recv().await {
        for tried in 1..=TRIES {
            match forward(&mut client, &address, &envelope).await {
                Ok(()) => break,
                Err(e) => {
                    tracing::warn!(topic = envelope.topic, tried, "containerd did not take an event: {e}");
                    client = None;
                }
            }
            if tried < TRIES {
                tokio::time::sleep(Duration::from_millis(200 * tried * tried)).await;
            }
        }
    }
}

async fn forward(
    client: &mut Option<EventsClient>,
    address: &str,
    envelope: &Envelope,
) -> Result<(), containerd_shim::protos::ttrpc::Error> {
    let client = match client {
        Some(client) => client,
        None => {
            let whole = format!("unix://{address}");
            client.insert(EventsClient::new(Client::connect(&whole).await?))
        }
    };
    let request = ForwardRequest { envelope: MessageField::some(envelope.clone()), ..Default::default() };
    client.forward(context::with_duration(TIMEOUT), &request).await.map(|_| ())
}
