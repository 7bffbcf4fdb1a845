"""Tools around the package: data, benchmarks, reports. Nothing else imports them."""
