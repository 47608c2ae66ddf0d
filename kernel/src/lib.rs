//! stub
#![allow(unsafe_code)]
