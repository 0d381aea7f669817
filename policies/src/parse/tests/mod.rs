//! Reading documents: mistakes with their places.
