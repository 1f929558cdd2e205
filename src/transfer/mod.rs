//! The chunk pipeline above World: manifest, resume, verification.
