//! How long containerd's calls take, by the names that the dashboards of the field know.

use std::{collections::HashMap, time::Instant};

use async_trait::async_trait;
use containerd_shim_protos::ttrpc::{
    self, Request, Response,
    r#async::{MethodHandler, Service, TtrpcContext},
};
use prometheus::{HistogramOpts, HistogramVec, exponential_buckets};

const NAME: &str = "kata_shim_rpc_durations_histogram_milliseconds";
const HELP: &str = "How long the shim took to answer containerd, in milliseconds.";

/// An empty histogram for each call.
#[expect(clippy::expect_used, reason = "name, label and buckets are constants that a test makes use of")]
pub(crate) fn histogram() -> HistogramVec {
    let buckets = exponential_buckets(1.0, 2.0, 10).expect("buckets that grow");
    HistogramVec::new(HistogramOpts::new(NAME, HELP).buckets(buckets), &["action"])
        .expect("a name and a label")
}

/// The same services; what their methods take is noted.
pub(crate) fn timed(
    mut services: HashMap<String, Service>,
    histogram: &HistogramVec,
) -> HashMap<String, Service> {
    for service in services.values_mut() {
        let methods = std::mem::take(&mut service.methods).into_iter().map(|(name, method)| {
            let timed = Timed { action: snake_case(&name), histogram: histogram.clone(), method };
            (name, Box::new(timed) as Box<dyn MethodHandler + Send + Sync>)
        });
        service.methods = methods.collect();
    }
    services
}

struct Timed {
    action: String,
    histogram: HistogramVec,
    method: Box<dyn MethodHandler + Send + Sync>,
}

#[async_trait]
impl MethodHandler for Timed {
    async fn handler(&self, context: TtrpcContext, request: Request) -> ttrpc::Result<Response> {
        let began = Instant::now();
        let response = self.method.handler(context, request).await;
        let took = began.elapsed().as_secs_f64() * 1000.0;
        self.histogram.with_label_values(&[&self.action]).observe(took);
        response
    }
}

/// `CloseIO` is `close_io`.
fn snake_case(name: &str) -> String {
    let mut snake = String::new();
    let mut after_small = false;
    for letter in name.chars() {
        if letter.is_ascii_uppercase() && after_small {
            snake.push('_');
        }
        after_small = letter.is_ascii_lowercase();
        snake.push(letter.to_ascii_lowercase());
    }
    snake
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Answers;

    #[async_trait]
    impl MethodHandler for Answers {
        async fn handler(&self, _: TtrpcContext, _: Request) -> ttrpc::Result<Response> {
            Ok(Response::new())
        }
    }

    #[tokio::test]
    async fn c22_calls_are_counted_by_the_names_that_dashboards_know() {
        let names = ["CloseIO", "ResizePty", "Create"].map(snake_case);
        assert_eq!(names, ["close_io", "resize_pty", "create"]);
        let histogram = histogram();
        let method: Box<dyn MethodHandler + Send + Sync> = Box::new(Answers);
        let service = Service { methods: [("CloseIO".to_string(), method)].into(), streams: HashMap::new() };
        let services = timed([("Task".to_string(), service)].into(), &histogram);
        let method = &services["Task"].methods["CloseIO"];
        method.handler(TtrpcContext::default(), Request::new()).await.unwrap();
        assert_eq!(histogram.with_label_values(&["close_io"]).get_sample_count(), 1);
    }
}
