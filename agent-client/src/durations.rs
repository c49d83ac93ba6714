//! How long the guest takes to answer, by the names that the dashboards of the field know.

use std::time::Duration;

use prometheus::{HistogramOpts, HistogramVec, exponential_buckets};

const NAME: &str = "kata_shim_agent_rpc_durations_histogram_milliseconds";
const HELP: &str = "How long the guest's agent took to answer, in milliseconds.";

/// An empty histogram for each call.
#[expect(clippy::expect_used, reason = "name, label and buckets are constants that a test makes use of")]
pub(crate) fn histogram() -> HistogramVec {
    let buckets = exponential_buckets(1.0, 2.0, 10).expect("buckets that grow");
    HistogramVec::new(HistogramOpts::new(NAME, HELP).buckets(buckets), &["action"])
        .expect("a name and a label")
}

pub(crate) fn note(histogram: &HistogramVec, call: &str, took: Duration) {
    histogram.with_label_values(&[&request_of(call)]).observe(took.as_secs_f64() * 1000.0);
}

/// The type of a call's request, which actions are named by.
fn request_of(call: &str) -> String {
    let stem = match call {
        "GetGuestDetails" => "GuestDetails",
        "WriteStdin" => "WriteStream",
        "ReadStdout" | "ReadStderr" => "ReadStream",
        "GetVolumeStats" => "VolumeStats",
        other => other,
    };
    format!("grpc.{stem}Request")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn c22_calls_are_counted_by_the_names_of_their_requests() {
        let histogram = histogram();
        note(&histogram, "ReadStdout", Duration::from_millis(3));
        note(&histogram, "ReadStderr", Duration::from_millis(5));
        note(&histogram, "Check", Duration::ZERO);
        let reads = histogram.with_label_values(&["grpc.ReadStreamRequest"]);
        assert_eq!((reads.get_sample_count(), reads.get_sample_sum()), (2, 8.0));
        assert_eq!(histogram.with_label_values(&["grpc.CheckRequest"]).get_sample_count(), 1);
    }
}
