"""SQL sinks: the commit of a consumer as a transaction of the user's own database."""
