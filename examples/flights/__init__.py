"""January 2013 at the three airports of New York: 27,004 flights, two chained consumers."""
