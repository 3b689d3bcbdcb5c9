//! The gRPC contract of Weir: package `weir.v1`, generated from
//! `proto/weir/v1/*.proto`, the limits both sides agree on, the rules by
//! which secrets are kept, the trace context that calls carry, and KEDA's contract of scalers.

pub mod codec;
pub mod gathered;
pub mod limits;
pub mod parts;
pub mod secret;
pub mod trace;

/// Package `weir.v1`. The `.proto` files document every message and field.
#[expect(
    unused_qualifications,
    clippy::pedantic,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    reason = "generated code"
)]
pub mod v1 {
    tonic::include_proto!("weir.v1");

    /// The compiled descriptors of the package, for gRPC reflection.
    pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/weir.v1.bin"));
}

/// Package `externalscaler`: what KEDA asks a scaler. `externalscaler.proto`
/// says how Weir answers.
#[expect(
    unused_qualifications,
    clippy::pedantic,
    clippy::doc_overindented_list_items,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    reason = "generated code"
)]
pub mod externalscaler {
    tonic::include_proto!("externalscaler");
}
