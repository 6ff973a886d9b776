"""What external-dns would do to one name next: for dns-check. Pure: nothing here reads a cluster.

`values` has what all of it speaks of. `flags` and `objects` turn what kubectl prints into it,
`zone` what `aws route53` prints. `plan` has the rules of external-dns, `judge` what is dangerous.

The rules are those of external-dns v0.8.0 to v0.22.0 with the AWS provider and the TXT registry:
its plan/plan.go, plan/policy.go, registry/txt, source/ingress.go and provider/aws/aws.go. Whatever
is not modelled is refused by name.
"""
