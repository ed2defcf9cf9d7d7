"""Who a person is, and the providers that say so."""
