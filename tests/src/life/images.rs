//! Images of two dumps, compared.
