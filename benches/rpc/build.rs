//! tonic's client and server for one method, as its own generator writes them; no `protoc` is needed for that.

use tonic_build::manual::{Builder, Method, Service};

fn main() {
    let echo = Method::builder()
        .name("echo")
        .route_name("Echo")
        .input_type("rpc::Message")
        .output_type("rpc::Message")
        .codec_path("tonic_prost::ProstCodec")
        .build();
    Builder::new().compile(&[Service::builder().name("Echo").package("rpc").method(echo).build()]);
}
