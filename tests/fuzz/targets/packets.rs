//! What our processes say to each other, should one of them have been taken over.
#![no_main]

use libfuzzer_sys::fuzz_target;
use postroom::lda::wire::{Answer, Offer};
use postroom::run::wire::{self, Forked, Order, Request};

fuzz_target!(|bytes: &[u8]| {
    let _ = wire::unpacked::<Order>(bytes);
    let _ = wire::unpacked::<Forked>(bytes);
    let _ = wire::unpacked::<Answer>(bytes);
    let _ = wire::unpacked::<wire::Answer>(bytes);
    if let Ok(offer) = wire::unpacked::<Offer>(bytes) {
        let again = wire::packed(&offer).unwrap();
        assert_eq!(wire::unpacked::<Offer>(&again).unwrap(), offer);
    }
    if let Ok(request) = wire::unpacked::<Request>(bytes) {
        wire::packed(&request).unwrap();
    }
});
