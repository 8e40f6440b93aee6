"""The validator's SQL: plain functions over a connection, one module per aggregate."""
