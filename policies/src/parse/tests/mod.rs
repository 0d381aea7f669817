//! Reading documents: mistakes with their places.

mod entries;
